"""Tokens of the cache's own through the whole product: where clients are sent for one, what it is good for, and that
nobody else sees it."""

import json
import re
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_plus, urlencode, urlsplit

import bcrypt
import pytest

from mitm_cache.demo.image import KIB, generate
from mitm_cache.errors import ConfigError
from mitm_cache.local.granting import FORM
from mitm_cache.users.attempts import BUDGET
from mitm_cache.users.tokens import SECONDS, parse_token
from mitm_cache.wire.challenge import parse_bearer
from tests.fakes.registry import LyingUpstream
from tests.proxy.raw import Answer, Raw, dial, request
from tests.serving import Client, Reply, Threaded, in_thread, process

UPSTREAM, LOCAL = "registry.demo", "registry.local"
DAMAGED = r"tokens\.key is damaged"
PASSWORD, WRONG = "planted horse", "planted mare"
BEGIN = {"Content-Length": "0"}
UPLOADS = "team/app/blobs/uploads/"


def settings(users: Path, rows: str = "") -> str:
    return f"""
[local]
names = ["registry.local", "localhost", "mine/"]
max_size = "1G"
[clients]
users_file = "{users}"
[registries."docker.io"]
offline = true
{rows}
"""


def basic(password: str = PASSWORD, name: str = "ann") -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'{name}:{password}'.encode()).decode()}"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def write_users(path: Path, password: str = PASSWORD) -> None:
    """One user, ann; none without a password."""
    # As `user add` does: whoever looks meanwhile has the old one or the new one, and not half of it.
    new = path.with_name(f"{path.name}.new")
    new.touch(mode=0o600)
    hash_ = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    new.write_text(f"ann:{hash_}\n" if password else "")
    new.replace(path)


@dataclass(frozen=True, slots=True)
class Scene:
    cache: Threaded
    upstream: LyingUpstream
    users: Path

    def image(self) -> str:
        return f"/v2/team/app/manifests/{self.upstream.registry.repositories['team/app'].tags['1']}"

    def credentials_heard(self) -> list[str]:
        """What upstream was shown."""
        heard = (each.headers for each in self.upstream.requests.select())
        return [value for fields in heard for name, value in fields.items() if name.lower() == "authorization"]


@contextmanager
def staged(tmp_path: Path, rows: str = "") -> Iterator[Scene]:
    users = tmp_path / "users"
    write_users(users)
    with (
        LyingUpstream(tmp_path) as upstream,
        in_thread(tmp_path / "data", upstream, more=settings(users, rows)) as cache,
    ):
        upstream.registry.put("team/app", generate(sizes=[3 * KIB], platforms=["linux/amd64"]), "1")
        yield Scene(cache, upstream, users)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with staged(tmp_path_factory.mktemp("tokens")) as it:
        yield it


def fetch(client: Client, login: dict[str, str] | None = None, *, path: str = "/v2/token", query: str = "") -> Reply:
    return client.get(f"{path}?service=x{query}", login)


def token_of(reply: Reply) -> str:
    assert reply.status == 200, reply.body
    return str(json.loads(reply.body)["token"])


def had(cache: Threaded, login: dict[str, str] | None = None) -> str:
    """A token."""
    with cache.client("tls", name=LOCAL) as client:
        return token_of(fetch(client, login))


# --- the challenge -----------------------------------------------------------------------------------------------

WAYS = [
    pytest.param("tls", LOCAL, "", "", "https://registry.local/v2/token", id="tls"),
    pytest.param("clear", LOCAL, "", "", "http://registry.local/v2/token", id="clear"),
    pytest.param("mirror", "localhost:5000", "", "", "http://localhost:5000/v2/local/token", id="mirror, by host"),
    pytest.param("mirror", "cache.example:5000", "mine/", "", "http://cache.example:5000/v2/local/token", id="prefix"),
    pytest.param("mirror", "cache.example", "local/", "", "http://cache.example/v2/local/token", id="local/"),
    pytest.param("mirror", "[::1]:5000", "", "ns=localhost", "http://[::1]:5000/v2/local/token", id="namespace"),
]


@pytest.mark.parametrize(("listener", "host", "prefix", "query", "url"), WAYS)
def test_every_way(scene: Scene, listener: str, host: str, prefix: str, query: str, url: str) -> None:
    """The realm is at the host and scheme by which the client came; with a stranger's token it pulls, with a user's
    it pushes, and by the same name."""
    mark, called = f"?{query}" if query else "", {"Host": host}
    name = host.partition(":")[0] if listener != "mirror" else "x"
    with scene.cache.client(listener, name=name) as client:
        asked = client.ask("POST", f"/v2/{prefix}{UPLOADS}{mark}", BEGIN | called)
        challenge = parse_bearer(asked.headers["WWW-Authenticate"])
        assert challenge is not None
        assert (asked.status, asked.code) == (401, "UNAUTHORIZED")
        assert (challenge.realm, challenge.service) == (url, host)
        assert challenge.scope == f"repository:{prefix}team/app:pull,push"
        assert "error=" not in asked.headers["WWW-Authenticate"]
        path = urlsplit(challenge.realm).path
    with scene.cache.client(listener, name=name) as client:
        stranger = fetch(client, called, path=path, query=f"&scope={challenge.scope}&client_id=x&account=")
        assert stranger.headers["Cache-Control"] == "no-store"
        said = json.loads(stranger.body)
        assert said["token"] == said["access_token"]
        # A client whose clock is wrong counts from when it has the token, and asks for another before it ends.
        assert "issued_at" not in said
        ends = parse_token(said["token"])
        assert ends is not None
        assert SECONDS - 120 < said["expires_in"] < ends.expires - time.time()
        login = called | bearer(said["token"])
        assert client.get(f"/v2/{prefix}none/manifests/1{mark}", login).status == 404
        refused = client.ask("POST", f"/v2/{prefix}{UPLOADS}{mark}", BEGIN | login)
        assert (refused.status, refused.outcome) == (401, "REFUSED")
        assert 'error="insufficient_scope"' in refused.headers["WWW-Authenticate"]
        assert "pushing to local/team/app needs a login" in refused.message
    with scene.cache.client(listener, name=name) as client:
        user = token_of(fetch(client, called | basic(), path=path))
        opened = client.ask("POST", f"/v2/{prefix}{UPLOADS}{mark}", BEGIN | called | bearer(user))
        assert opened.status == 202, opened.body
    assert scene.cache.log.wait(1, user="ann", listener=listener, method="POST", status=202)


@pytest.mark.parametrize(("listener", "name"), [("tls", LOCAL), ("mirror", "localhost"), ("mirror", "cache.example")])
def test_pings(scene: Scene, listener: str, name: str) -> None:
    """A ping asks for a token, also at a mirror's root where a path leads to the local registry, and takes any good
    one, or a password at once."""
    with scene.cache.client(listener, name=name) as client:
        ping = client.get("/v2/")
        challenge = parse_bearer(ping.headers["WWW-Authenticate"])
        assert challenge is not None
        assert (ping.status, challenge.scope) == (401, "")
        for login in (bearer(had(scene.cache)), bearer(had(scene.cache, basic())), basic()):
            assert client.get("/v2/", login).status == 200
        wrong = client.get("/v2/", basic(WRONG))
        assert (wrong.status, parse_bearer(wrong.headers["WWW-Authenticate"])) == (401, challenge)


def test_a_mirror_with_tls(scene: Scene) -> None:
    """Who comes to the mirror by TLS is sent for a token by TLS."""
    context = ssl.create_default_context(cafile=scene.cache.ca_file)
    with Raw(scene.cache.address("mirror"), tls=context, name=LOCAL) as wire:
        wire.send(request("/v2/", host=f"{LOCAL}:5000"))
        challenge = parse_bearer(wire.answer().headers["www-authenticate"])
        assert challenge is not None
        assert challenge.realm == f"https://{LOCAL}:5000/v2/local/token"


def test_the_proxys_own_address(scene: Scene) -> None:
    """Who has the cache for a proxy in clear text asks it by a whole URL, which has the port."""
    address = "{}:{}".format(*scene.cache.address("connect"))
    with Raw(scene.cache.address("connect")) as wire:
        wire.send(f"GET http://{address}/v2/local/_catalog HTTP/1.1\r\nHost: other\r\n\r\n".encode())
        assert wire.answer().status == 200
        line = f"POST http://{address}/v2/local/{UPLOADS} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n"
        wire.send(line.encode())
        challenge = parse_bearer(wire.answer("POST").headers["www-authenticate"])
        assert challenge is not None
        assert challenge.realm == f"http://{address}/v2/local/token"


def test_behind_another_server(scene: Scene) -> None:
    """What ends TLS in front of the cache says so, and passwords are not asked for in clear text."""
    words = {"https": "https", "HTTPS": "https", "https, http": "https", "http, https": "http", "javascript": "http"}
    for listener in ("clear", "mirror"):
        for word, scheme in words.items():
            with scene.cache.client(listener, name=LOCAL) as client:
                ping = client.get("/v2/", {"X-Forwarded-Proto": word})
                assert f'realm="{scheme}://registry.local/v2/' in ping.headers["WWW-Authenticate"], word


@pytest.mark.parametrize("host", ['a"b', "a b,", "a'<b>"])
def test_a_host_that_would_break_the_header(scene: Scene, host: str) -> None:
    """Nothing of it comes back."""
    with dial(scene.cache, "mirror", name="x") as wire:
        wire.send(request("/v2/local/team/app/blobs/uploads/", "Content-Length: 0", method="POST", host=host))
        answer = wire.answer("POST")
    assert answer.status in (400, 401)
    assert answer.headers.get("www-authenticate", 'Basic realm="mitm-cache"') == 'Basic realm="mitm-cache"'


@contextmanager
def behind_connect(scene: Scene) -> Iterator[Raw]:
    """A connection to the local registry by the proxy, as ann."""
    with Raw(scene.cache.address("connect")) as wire:
        login = f"Proxy-Authorization: {basic()['Authorization']}"
        wire.send(f"CONNECT {LOCAL}:443 HTTP/1.1\r\nHost: {LOCAL}:443\r\n{login}\r\n\r\n".encode())
        assert wire.head()[0] == 200
        context = ssl.create_default_context(cafile=scene.cache.ca_file)
        with context.wrap_socket(wire.socket, server_hostname=LOCAL) as tls:
            wire.socket = tls
            yield wire


def test_behind_connect(scene: Scene) -> None:
    """Who has logged in to the proxy is that user; a stranger's token makes nobody of a user."""
    with behind_connect(scene) as wire:
        wire.send(request("/v2/", host=LOCAL))
        assert wire.answer().status == 200
        stranger = f"Authorization: Bearer {had(scene.cache)}"
        line = request(f"/v2/{UPLOADS}", "Content-Length: 0", stranger, method="POST", host=LOCAL)
        wire.send(line)
        assert wire.answer("POST").status == 202


@pytest.mark.parametrize("users", ["", "another"], ids=["removed", "another password"])
def test_behind_connect_a_user_ends(tmp_path: Path, users: str) -> None:
    """A connection that was let in as a user who is none any more, or has another password, is a stranger's: it pushes
    nothing, and gets no user's token."""
    with staged(tmp_path) as scene, behind_connect(scene) as wire:

        def ask(target: str) -> Answer:
            wire.send(request(target, host=LOCAL))
            return wire.answer()

        def name() -> str:
            token = parse_token(json.loads(ask("/v2/token").body)["token"])
            assert token is not None
            return token.name

        assert name() == "ann"
        write_users(scene.users, users)
        give_up = time.monotonic() + 20
        while ask("/v2/").status == 200:
            assert time.monotonic() < give_up
        assert name() == ""
        wire.send(request(f"/v2/{UPLOADS}", "Content-Length: 0", method="POST", host=LOCAL))
        assert wire.answer("POST").status == 401


# --- getting one -------------------------------------------------------------------------------------------------


def test_who_gets_none(scene: Scene) -> None:
    """A wrong password gets 401, and a token is no password."""
    with scene.cache.client("tls", name=LOCAL) as client:
        for login in (basic(WRONG), basic(name="eve"), {"Authorization": "Digest x"}):
            refused = fetch(client, login)
            assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
            assert refused.headers["WWW-Authenticate"] == 'Basic realm="mitm-cache"'
    with scene.cache.client("tls", name=LOCAL) as client:
        assert client.get(f"/v2/token?scope={'x' * 9000}").status in (414, 431)
    for token in (had(scene.cache), had(scene.cache, basic())):
        with scene.cache.client("tls", name=LOCAL) as client:
            refused = fetch(client, bearer(token))  # it would never end
            assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
            assert refused.headers["WWW-Authenticate"] == 'Basic realm="mitm-cache"'
    with scene.cache.client("tls", name=LOCAL) as client:
        assert client.head("/v2/token").status == 200


GRANT = {"grant_type": "password", "username": "ann", "password": PASSWORD}


def post(client: Client, path: str = "/v2/token", headers: dict[str, str] | None = None, **changed: str) -> Reply:
    """The answer to a form, as containerd and BuildKit send it."""
    fields = {key: value for key, value in (GRANT | changed).items() if value}
    kind = {"Content-Type": f"{FORM}; charset=utf-8"}
    return client.ask("POST", path, kind | (headers or {}), urlencode(fields, errors="surrogateescape").encode())


@pytest.mark.parametrize(
    ("listener", "name", "path"),
    [("tls", LOCAL, "/v2/token"), ("mirror", "localhost:5000", "/v2/local/token"), ("clear", LOCAL, "/v2/token")],
)
def test_by_a_form(scene: Scene, listener: str, name: str, path: str) -> None:
    """A user gets one by OAuth 2's password grant, as good as any other, and none to renew it by."""
    scope = "repository:team/app:pull,push"
    with scene.cache.client(listener, name=name) as client:
        token = ""
        for _ in range(2):
            posted = post(client, path, scope=scope, client_id="containerd-client", service=LOCAL)
            assert (posted.status, posted.outcome, posted.headers["Cache-Control"]) == (200, "LOCAL", "no-store")
            said = json.loads(posted.body)
            assert said.keys() == {"token", "access_token", "expires_in", "scope"}
            assert said["scope"] == scope
            assert SECONDS - 120 < said["expires_in"] < SECONDS
            token = said["access_token"]
        opened = client.ask("POST", f"/v2/{UPLOADS}", BEGIN | bearer(token))
        assert opened.status == 202
    assert scene.cache.log.wait(1, user="ann", listener=listener, method="POST", status=202)


FORMS = [
    pytest.param({"password": WRONG}, 401, "the user or the password is wrong", id="a wrong password"),
    pytest.param({"username": "eve"}, 401, "the user or the password is wrong", id="another user"),
    pytest.param({"username": "ann\udcff"}, 401, "the user or the password is wrong", id="a name of no text"),
    pytest.param({"password": "\udcff"}, 401, "the user or the password is wrong", id="a password of no text"),
    pytest.param({"grant_type": "refresh_token", "refresh_token": "x"}, 400, "grant_type=password", id="another grant"),
    pytest.param({"grant_type": ""}, 400, "grant_type=password", id="no grant"),
    pytest.param({"username": ""}, 400, "username and password", id="no user"),
    pytest.param({"password": ""}, 400, "username and password", id="no password"),
    pytest.param({"scope": "x" * 9000}, 413, "at most 8192 bytes", id="too long"),
]


@pytest.mark.parametrize(("changed", "status", "words"), FORMS)
def test_forms_that_get_none(scene: Scene, changed: dict[str, str], status: int, words: str) -> None:
    """Each is told why."""
    with scene.cache.client("clear", name=LOCAL) as client:
        refused = post(client, "/v2/token", None, **changed)
    assert (refused.status, refused.outcome) == (status, "REFUSED")
    assert words in refused.message
    assert (refused.headers.get("WWW-Authenticate") == 'Basic realm="mitm-cache"') == (status == 401)


def test_posts_that_are_no_forms(scene: Scene) -> None:
    """Something else than a form, nothing at all, what a browser sends for a web page, and another path."""
    posts = {
        415: ("/v2/token", {"Content-Type": "application/json"}),
        403: ("/v2/token", {"Origin": "https://evil.example"}),
        405: ("/v2/tokens", {}),
        400: ("/v2/token", {"Content-Length": "0"}),
    }
    for status, (path, headers) in posts.items():
        with scene.cache.client("tls", name=LOCAL) as client:
            kind = {"Content-Type": FORM} | headers
            body = b"" if "Content-Length" in headers else urlencode(GRANT).encode()
            assert client.ask("POST", path, kind, body).status == status


def test_dockerd_at_its_mirror(scene: Scene) -> None:
    """dockerd shows the login that it has at Docker Hub: for other registries' repositories it gets a stranger's
    token, and for the cache's own, and by `docker login`, none."""
    hub = basic(name="hub")
    scopes = {
        "&scope=repository:library/alpine:pull": 200,
        "&scope=repository:quay.io/org/app:pull,push": 200,
        "&scope=repository:mine/app:pull": 401,
        "&scope=repository:local/app:pull": 401,
        "&scope=repository:library/alpine:pull&scope=repository:mine/app:pull": 401,
        "&scope=repository:library/alpine:pull%20repository:mine/app:pull": 401,
        "&scope=": 401,
        "": 401,
    }
    for query, status in scopes.items():
        with scene.cache.client("mirror", name="cache.example") as client:
            assert (fetch(client, hub, path="/v2/local/token", query=query).status, query) == (status, query)
    for listener, name in (("mirror", "localhost:5000"), ("tls", LOCAL)):
        with scene.cache.client(listener, name=name) as client:
            path = "/v2/local/token" if listener == "mirror" else "/v2/token"
            assert fetch(client, hub, path=path, query="&scope=repository:library/alpine:pull").status == 401


def test_passwords_are_not_tried_without_end(tmp_path: Path) -> None:
    """The limit is the one of all passwords."""
    with staged(tmp_path) as scene, scene.cache.client("clear", name=LOCAL) as client:
        statuses = []
        for number in range(BUDGET + 3):
            wrong = f"{WRONG}{number}"
            statuses.append((post(client, password=wrong) if number % 2 else fetch(client, basic(wrong))).status)
            client.close()
        assert statuses[:BUDGET] == [401] * BUDGET
        assert 429 in statuses[BUDGET:]


def test_nobodys_paths_are_taken(scene: Scene) -> None:
    """Another registry has its own paths, by its name and at a mirror, which passes none of that on."""
    scene.upstream.requests.clear()
    with scene.cache.client("tls", name=UPSTREAM) as client:
        assert client.get("/v2/token").outcome == "RELAY"
    for target in ("/v2/token", f"/v2/{UPSTREAM}/token", f"/v2/token?ns={UPSTREAM}"):
        with scene.cache.client("mirror", name="cache.example") as client:
            assert client.get(target).outcome == "REFUSED"
    assert [each.path for each in scene.upstream.requests.select()] == ["/v2/token"]


def test_without_users(tmp_path: Path) -> None:
    """There are no tokens: nobody is asked for one, none is given out, there is no key, and what looks like one is
    nobody's login."""
    names = '[local]\nnames = ["registry.local"]\nmax_size = "1G"\n'
    with LyingUpstream(tmp_path) as upstream, in_thread(tmp_path / "data", upstream, more=names) as cache:
        with cache.client("tls", name=LOCAL) as client:
            assert client.get("/v2/", bearer("x")).status == 200
            assert client.get("/v2/token").status == 404
            assert client.ask("POST", f"/v2/{UPLOADS}", BEGIN | bearer("x")).status == 202
        assert not (tmp_path / "data" / "run" / "tokens.key").exists()


# --- tokens that are none ----------------------------------------------------------------------------------------


def changed(token: str) -> str:
    """The same with another MAC."""
    head, _, mac = token.rpartition(".")
    return f"{head}.{'B' if mac[0] == 'A' else 'A'}{mac[1:]}"


NONE = [
    pytest.param(lambda _: "Bearer", id="nothing"),
    pytest.param(lambda _: "Bearer eyJhbGciOiJub25lIn0.e30.", id="another registry's"),
    pytest.param(lambda token: f"Bearer {changed(token)}", id="a wrong MAC"),
    pytest.param(lambda token: f"Bearer {token}x", id="a longer one"),
    pytest.param(lambda token: f"Bearer {token[:-1]}", id="a shorter one"),
    pytest.param(lambda token: f"Bearer {token} x", id="something behind it"),
    pytest.param(lambda token: f"Bearer {token.upper()}", id="another case"),
    pytest.param(lambda token: f"Token {token}", id="another scheme"),
    pytest.param(lambda _: f"Bearer {'a' * 50_000}", id="50 kB"),
    pytest.param(lambda _: "Bearer \xff\xfe", id="no ASCII"),
]


@pytest.mark.parametrize("made", NONE)
@pytest.mark.parametrize("asked", ["GET /v2/", "GET /v2/a/tags/list", "PUT /v2/a/manifests/1"])
def test_what_is_no_token(scene: Scene, made: Callable[[str], str], asked: str) -> None:
    """It is refused with the word by which clients get another one, also where strangers would be let in."""
    login, (method, target) = {"Authorization": made(had(scene.cache, basic()))}, asked.split()
    with scene.cache.client("clear", name=LOCAL) as client:
        refused = client.ask(method, target, login, b"{}" if method == "PUT" else None)
    assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
    assert 'error="invalid_token"' in refused.headers["WWW-Authenticate"]
    assert "get another one" in refused.message


def test_two_of_them(scene: Scene) -> None:
    """Of two credentials none counts."""
    token = f"Authorization: Bearer {had(scene.cache, basic())}"
    with dial(scene.cache, "clear", name="x") as wire:
        wire.send(request("/v2/", token, token, host=LOCAL))
        assert wire.answer().status == 401


def test_a_user_who_is_none_any_more(tmp_path: Path) -> None:
    """Another password ends a user's tokens within a second, and so does the user's end; a stranger's goes on."""
    with staged(tmp_path) as scene, scene.cache.client("tls", name=LOCAL) as client:

        def ends(token: str) -> Reply:
            give_up = time.monotonic() + 20
            while (reply := client.get("/v2/", bearer(token))).status == 200:
                assert time.monotonic() < give_up
            return reply

        stranger, first = had(scene.cache), had(scene.cache, basic())
        assert client.get("/v2/", bearer(first)).status == 200
        write_users(scene.users, "another")
        assert 'error="invalid_token"' in ends(first).headers["WWW-Authenticate"]
        client.close()
        second = had(scene.cache, basic("another"))
        scene.users.write_text("")
        assert ends(second).status == 401
        client.close()
        assert client.get("/v2/", bearer(stranger)).status == 200


def test_over_a_restart(tmp_path: Path) -> None:
    """Tokens are good in every process over one data directory, one after the other too."""
    users = tmp_path / "users"
    write_users(users)
    with LyingUpstream(tmp_path) as upstream:
        with process(tmp_path / "data", upstream, more=settings(users)) as one, one.client(name=LOCAL) as client:
            token = token_of(fetch(client, basic()))
        with in_thread(tmp_path / "data", upstream, more=settings(users)) as two, two.client(name=LOCAL) as client:
            assert client.get("/v2/", bearer(token)).status == 200
        key = tmp_path / "data" / "run" / "tokens.key"
        assert (key.stat().st_mode & 0o777, key.stat().st_size) == (0o600, 32)
        key.write_bytes(b"short")
        with (
            pytest.raises(ConfigError, match=DAMAGED),
            in_thread(tmp_path / "data", upstream, more=settings(users)),
        ):
            pass
        with process(tmp_path / "data", upstream, more=settings(users)) as failed:
            assert failed.popen.wait(60) == 1
        assert re.search(DAMAGED, "".join(failed.said))
        assert "Traceback" not in "".join(failed.said)


# --- what they are worth -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("whose", ["ann", ""])
def test_upstream_sees_none(scene: Scene, whose: str, good: bool) -> None:
    """At a mirror a token says who asks, and a bad one is refused; at another registry's own name it says nothing.
    Nowhere is it shown to a registry, in a pull or a push."""
    token = had(scene.cache, basic() if whose else None)
    login = bearer(token if good else changed(token))
    scene.upstream.requests.clear()
    before = scene.cache.log.count(registry=UPSTREAM, user="ann")
    with scene.cache.client("mirror", name="cache.example") as client:
        assert client.get(f"/v2/{UPSTREAM}{scene.image()[3:]}", login).status == (200 if good else 401)
    with scene.cache.client("mirror", name="cache.example") as client:
        assert client.ask("POST", f"/v2/team/app/blobs/uploads/?ns={UPSTREAM}", BEGIN | login).status == 405
    for listener in ("tls", "clear"):
        with scene.cache.client(listener, name=UPSTREAM) as client:
            assert client.get(scene.image(), login).status == 200
            client.get("/v2/team/app/tags/list", {"Authorization": f"Odd {token}"})
            client.ask("POST", "/v2/team/app/blobs/uploads/", BEGIN | login)
    assert scene.upstream.requests.count() > 0
    assert scene.credentials_heard() == []
    users = scene.cache.log.select(registry=UPSTREAM, user="ann")[before:]
    assert {line["listener"] for line in users} == ({"mirror"} if whose and good else set())


def test_another_caches_token_is_not_ours(scene: Scene, tmp_path: Path) -> None:
    """A registry may be a cache like this one: its tokens go to it as they came."""
    foreign = had(scene.cache).replace("mitm-cache.", "mitm-cache.f")
    scene.upstream.requests.clear()
    with scene.cache.client("tls", name=UPSTREAM) as client:
        client.get("/v2/team/app/tags/list", bearer(foreign))
    assert set(scene.credentials_heard()) == {f"Bearer {foreign}"}


def test_policy_is_asked_each_time(tmp_path: Path) -> None:
    """A token says who, not what: rows decide for users and for strangers, and web pages change nothing without a
    login, with a stranger's token neither."""
    rows = """
[[policy]]
registry = "local"
repository = "secret/*"
users = ["ann"]
[[policy]]
registry = "local"
repository = "secret/*"
action = "deny"
[[policy]]
registry = "local"
repository = "open/*"
"""
    with staged(tmp_path, rows) as scene, scene.cache.client("clear", name=LOCAL) as client:
        user, stranger = bearer(had(scene.cache, basic())), bearer(had(scene.cache))
        assert client.get("/v2/secret/a/tags/list", user).status == 404
        denied = client.get("/v2/secret/a/tags/list", stranger)
        assert denied.status == 401
        assert 'scope="repository:secret/a:pull",error="insufficient_scope"' in denied.headers["WWW-Authenticate"]
        client.close()
        page = {"Origin": "https://evil.example"}
        uploads = "/v2/open/a/blobs/uploads/"
        assert client.ask("POST", uploads, BEGIN | stranger).status == 202
        assert client.ask("POST", uploads, BEGIN | user | page).status == 202
        assert client.ask("POST", uploads, BEGIN | stranger | page).status == 403


def test_no_token_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Good or bad, in a pull, a push or a request for a token: it is in no log, line and file; nor is the password
    of a form."""
    with staged(tmp_path) as scene:
        tokens = [had(scene.cache, basic()), had(scene.cache)]
        tokens += [changed(token) for token in tokens]
        for token in tokens:
            for listener, name in (("tls", LOCAL), ("mirror", UPSTREAM), ("clear", UPSTREAM)):
                for method, target in (("GET", scene.image()), ("POST", f"/v2/{UPLOADS}"), ("GET", "/v2/token")):
                    with scene.cache.client(listener, name=name) as client:
                        client.ask(method, target, bearer(token), b"" if method == "POST" else None)
        for password in (PASSWORD, WRONG):
            with scene.cache.client("clear", name=LOCAL) as client:
                post(client, password=password)
        text = scene.cache.log.text
    files = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    said = capfd.readouterr()
    for token in tokens:
        mac = token.rpartition(".")[2]
        assert mac not in text + caplog.text + said.out + said.err
        assert mac.encode() not in files
    for password in (PASSWORD, WRONG):
        for said_so in (password, quote_plus(password)):
            assert said_so not in text + caplog.text + said.out + said.err
            assert said_so.encode() not in files
