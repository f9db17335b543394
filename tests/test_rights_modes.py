"""Whose right counts: the client's, also the cache's own, or nobody's; and what the cache's credential is used for."""

import base64
import json
import logging
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import pytest

from mitm_cache import rights
from mitm_cache.app import App, run_in_thread
from mitm_cache.cache.index import Index
from mitm_cache.config import load
from mitm_cache.demo.access import Access
from mitm_cache.demo.image import KIB, Image, generate
from mitm_cache.oci.reference import Repository
from mitm_cache.rights import Modes, Verdicts
from mitm_cache.upstream import credentials
from mitm_cache.wire.message import Credential
from tests.fakes import faults
from tests.fakes.registry import LyingUpstream, Witness
from tests.lab.clients import docker_login
from tests.serving import Log, Reply, Threaded, settings

PRIVATE, OTHER, PUBLIC = "team/private", "other/private", "public/app"
USERS = {"ann": "anns-password", "bob": "bobs-password", "robot": "robots-password"}
ANY = {"Accept": "*/*"}
ROBOT = "robot:robots-password"

type Scheme = Literal["basic", "bearer"]


@pytest.fixture(scope="session")
def images() -> dict[str, Image]:
    names = (PRIVATE, OTHER, PUBLIC)
    return {name: generate(sizes=[20 * KIB], platforms=["linux/amd64"], seed=f"modes {name}") for name in names}


@pytest.fixture(params=["basic", "bearer"])
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def upstream(tmp_path: Path, images: dict[str, Image], scheme: Scheme) -> Iterator[LyingUpstream]:
    private = {PRIVATE: {"ann", "robot"}, OTHER: {"ann", "robot"}}
    with LyingUpstream(tmp_path, access=Access(scheme=scheme, users=dict(USERS), private=private)) as upstream:
        for name, image in images.items():
            upstream.registry.put(name, image, "1")
        yield upstream


@contextmanager
def serving(folder: Path, upstream: LyingUpstream, keys: str, *, more: str = "") -> Iterator[Threaded]:
    """The product, with these keys for its registry."""
    data, log, head = folder / "data", Log(), f'[registries."{upstream.registry.name}"]\n'
    text = settings(data, upstream, more=more)
    assert head in text
    file = folder / "modes.toml"
    file.write_text(text.replace(head, f"{head}{keys}\n"))
    app = App(load(file=file, environ={"MITM_CACHE_CACHE_TAG_TTL": "0s"}), output=log)
    with run_in_thread(app):
        yield Threaded(app, data, app.authority.certificate_path, log, upstream.registry.name)


def secret(folder: Path, text: str = ROBOT) -> Path:
    file = folder / "secret"
    file.touch(mode=0o600)
    file.write_text(text)
    return file


def keys(mode: str, folder: Path, text: str = ROBOT, repository: str = "*") -> str:
    """A mode, and a credential in a file."""
    return f"rights = '{mode}'\ncredentials = {{ repository = '{repository}', file = '{secret(folder, text)}' }}"


def ask(cache: Threaded, target: str, authorization: str = "", *, method: str = "GET") -> Reply:
    with cache.client() as client:
        return client.ask(method, target, ANY | ({"Authorization": authorization} if authorization else {}))


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def person(cache: Threaded, scheme: Scheme, user: str, repository: str = PRIVATE) -> str:
    """The `Authorization` of a user, got as clients get it."""
    header = basic(user, USERS[user])
    if scheme == "basic":
        return header
    reply = ask(cache, f"/token?service=demo&scope=repository:{repository}:pull", header)
    return f"Bearer {json.loads(reply.body)['token']}"


def liar(scheme: Scheme) -> str:
    return basic("ann", "guessed") if scheme == "basic" else "Bearer guessed"


def blob(images: dict[str, Image], name: str, within: str = "") -> tuple[str, bytes]:
    """The address and the bytes of an image's layer."""
    digest, content = max(images[name].blobs.items(), key=lambda item: item[1].size)
    return f"/v2/{within or name}/blobs/{digest}", b"".join(content.chunks(0, content.size))


def tag(name: str) -> str:
    return f"/v2/{name}/manifests/1"


def everything(images: dict[str, Image], name: str) -> tuple[str, ...]:
    return tag(name), f"/v2/{name}/manifests/{images[name].index.digest}", blob(images, name)[0]


# Shared.


def test_shared_lends_the_caches_right(
    tmp_path: Path, upstream: LyingUpstream, images: dict[str, Image], scheme: Scheme
) -> None:
    """A client without a credential has what the cache's may have, cold and warm, and is not asked to log in."""
    with serving(tmp_path, upstream, keys("shared", tmp_path)) as cache:
        ping = ask(cache, "/v2/")
        assert (ping.status, ping.outcome, ping.headers["WWW-Authenticate"]) == (200, "LOCAL", None)
        for each in everything(images, PRIVATE):
            assert ask(cache, each).status == 200
        reply = ask(cache, blob(images, PRIVATE)[0])
        assert (reply.outcome, reply.body) == ("HIT", blob(images, PRIVATE)[1])
        assert ask(cache, tag(PUBLIC)).status == 200
        with cache.client("mirror") as mirror:
            assert mirror.get(f"/v2/{PRIVATE}/manifests/1?ns={cache.registry}", ANY).outcome == "REVALIDATED"
            listed = json.loads(mirror.get(f"/v2/_catalog?ns={cache.registry}").body)["repositories"]
            assert PRIVATE in listed
        for authorization in (liar(scheme), person(cache, scheme, "bob")):
            for each in everything(images, PRIVATE):
                assert ask(cache, each, authorization).status == 401
            assert ask(cache, "/v2/", authorization).outcome != "LOCAL"
        assert ask(cache, blob(images, PRIVATE)[0], person(cache, scheme, "ann")).outcome == "HIT"
    # Storage was told no credential.
    assert {each.authorization for each in upstream.requests.select(kind="object")} == {""}


def test_shared_where_a_pattern_covers(
    tmp_path: Path, upstream: LyingUpstream, images: dict[str, Image], scheme: Scheme
) -> None:
    """Outside the pattern a client without a credential is a stranger, on a HIT too."""
    with serving(tmp_path, upstream, keys("shared", tmp_path, repository="team/*")) as cache:
        assert ask(cache, tag(PRIVATE)).status == 200
        ann = person(cache, scheme, "ann", OTHER)
        for each in everything(images, OTHER):
            assert ask(cache, each, ann).status == 200
            reply = ask(cache, each)
            assert (reply.status, reply.outcome) == (401, "REFUSED")
        # A digest of it is not had by the path of another repository either.
        assert ask(cache, blob(images, OTHER, PRIVATE)[0]).status == 404


def test_shared_by_docker_login(tmp_path: Path, upstream: LyingUpstream, images: dict[str, Image]) -> None:
    """What docker login has left is enough."""
    docker_login(tmp_path / "docker", f"{upstream.registry.name}/x", ROBOT)
    file = tmp_path / "docker" / "config.json"
    file.chmod(0o600)
    with serving(tmp_path, upstream, f"rights = 'shared'\ncredentials = {{ docker_config = '{file}' }}") as cache:
        assert ask(cache, blob(images, PRIVATE)[0]).body == blob(images, PRIVATE)[1]


@pytest.mark.parametrize("text", ["robot:wrong", "a-wrong-token"])
def test_shared_by_a_wrong_credential(
    tmp_path: Path, upstream: LyingUpstream, scheme: Scheme, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client is told the registry's own no, and the log says whose credential it was."""
    with serving(tmp_path, upstream, keys("shared", tmp_path, text)) as cache:
        reply = ask(cache, tag(PRIVATE))
        assert (reply.status, reply.code) == (401, "UNAUTHORIZED")
        assert reply.headers["WWW-Authenticate"].startswith(scheme.capitalize())
        ask(cache, tag(PRIVATE))
        lines = [line for line in caplog.messages if "credentials" in line]
    [line] = lines
    assert line.startswith(f"registries.registry.demo.credentials.file: registry.demo answered 401 for {PRIVATE}: ")
    assert text not in caplog.text


@pytest.mark.parametrize("scheme", ["bearer"], indirect=True)
def test_a_wrong_password_rests(tmp_path: Path, upstream: LyingUpstream) -> None:
    """A realm that refuses a password is not told it with every request; a new one is tried at once."""
    with serving(tmp_path, upstream, keys("shared", tmp_path, "robot:wrong")) as cache:
        for _ in range(3):
            assert ask(cache, tag(PRIVATE)).status == 401
            assert ask(cache, tag(PUBLIC)).status == 200
        assert [each.authorization for each in upstream.requests.select(kind="token", status=401)] == ["Basic"]
        secret(tmp_path)
        assert ask(cache, tag(PRIVATE)).status == 200


def test_a_helper_after_expiry(
    tmp_path: Path, upstream: LyingUpstream, monkeypatch: pytest.MonkeyPatch, images: dict[str, Image]
) -> None:
    """A helper's word holds until it is refused; then the helper is asked anew, and the client sees none of it."""
    monkeypatch.setattr(credentials, "ASK_SECONDS", 0.0)
    word, count, program = tmp_path / "word", tmp_path / "count", tmp_path / "bin" / "docker-credential-x"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\ncat > /dev/null\necho >> {count}\n"
        f'echo "{{\\"Username\\": \\"robot\\", \\"Secret\\": \\"$(cat {word})\\"}}"\n'
    )
    program.chmod(0o755)
    word.write_text(USERS["robot"])
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    with serving(tmp_path, upstream, "rights = 'shared'\ncredentials = { helper = 'x' }") as cache:
        assert ask(cache, tag(PRIVATE)).status == 200
        assert ask(cache, blob(images, PRIVATE)[0]).status == 200
        assert count.read_text() == "\n"
        upstream.registry.access.users["robot"] = "robots-second"
        upstream.registry.access.revoke()
        word.write_text("robots-second")
        assert ask(cache, tag(PRIVATE)).status == 200
        assert ask(cache, tag(PRIVATE)).status == 200
        assert count.read_text() == "\n\n"


@pytest.mark.parametrize("scheme", ["bearer"], indirect=True)
def test_tokens_are_renewed_in_time(tmp_path: Path, upstream: LyingUpstream) -> None:
    """A token is got once while it is good, anew when it is about to end, and anew when it was refused."""
    with serving(tmp_path, upstream, keys("shared", tmp_path)) as cache:

        def tokens() -> int:
            assert ask(cache, tag(PRIVATE)).status == 200
            found = upstream.requests.select(kind="token")
            assert {each.authorization for each in found} == {"Basic"}
            return len(found)

        assert [tokens(), tokens()] == [1, 1]
        upstream.registry.access.revoke()
        upstream.registry.access.lifetime = 5  # less than the margin
        assert [tokens() > 1, tokens() > 2] == [True, True]


@pytest.mark.parametrize("scheme", ["bearer"], indirect=True)
def test_a_realm_of_others_is_told_nothing(
    tmp_path: Path, upstream: LyingUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """A challenge that leads elsewhere gets no request at all, and the log says where it would have led."""
    with Witness(tls=upstream.trust.certify("127.0.0.1")) as witness:
        realm = witness.url("/token", name="127.0.0.1")
        upstream.registry.access.realm = realm
        with serving(tmp_path, upstream, keys("shared", tmp_path)) as cache:
            assert ask(cache, tag(PRIVATE)).status == 401
        assert len(witness.requests) == 0
    assert f"credentials.file: not sent to {realm}, which does not belong to registry.demo" in caplog.text
    assert "Basic" not in {each.authorization for each in upstream.requests}


def test_a_redirect_takes_no_credential_along(
    tmp_path: Path, upstream: LyingUpstream, images: dict[str, Image]
) -> None:
    """Nor does a realm, or a registry, that sends on to somebody else."""
    with Witness(tls=upstream.trust.certify("127.0.0.1")) as witness:
        address = witness.url("/stolen", name="127.0.0.1")
        with serving(tmp_path, upstream, keys("shared", tmp_path)) as cache:
            assert ask(cache, tag(PRIVATE)).status == 200
            upstream.lie("blob", faults.redirect_to(address))
            ask(cache, blob(images, PRIVATE)[0], method="HEAD")  # by a credential that is known to be wanted
            assert len(witness.requests) == 1
            upstream.registry.access.revoke()
            upstream.lie("token", faults.redirect_to(address))
            ask(cache, tag(PRIVATE))
        assert (len(witness.requests) > 1) is (upstream.registry.access.scheme == "bearer")
        assert {each.authorization for each in witness.requests} == {""}


# The client's own.


@pytest.mark.parametrize("scheme", ["bearer"], indirect=True)
def test_the_clients_right_comes_first(tmp_path: Path, upstream: LyingUpstream, images: dict[str, Image]) -> None:
    """By default the cache's credential gives nobody anything; it fetches what strangers were seen to be given."""
    with serving(tmp_path, upstream, keys("client", tmp_path)) as cache:
        ann = person(cache, "bearer", "ann")
        for each in everything(images, PRIVATE):
            assert ask(cache, each).status == 401
            assert ask(cache, each, ann).status == 200
            assert ask(cache, each).status == 401
        upstream.requests.clear()
        assert ask(cache, "/v2/").status == 401
        for each in everything(images, PUBLIC):
            assert ask(cache, each).status == 200
        logins = [each.authorization for each in upstream.requests.select(kind="token")]
        assert sorted(logins) == ["", "Basic"]
        asked = {each.headers.get("authorization", "") for each in upstream.requests if each.method == "HEAD"}
        fetched = {
            each.headers["authorization"]
            for each in upstream.requests.select(method="GET", status=200, kind="manifest")
        } | {each.headers["authorization"] for each in upstream.requests.select(method="GET", status=307)}
        assert len(fetched) == 1
        assert not asked & fetched


@pytest.mark.parametrize("scheme", ["bearer"], indirect=True)
def test_a_blob_is_asked_for_before_it_is_fetched(
    tmp_path: Path, upstream: LyingUpstream, images: dict[str, Image]
) -> None:
    """Where nothing is known of strangers' rights, the first thing is a question without a credential."""
    with serving(tmp_path, upstream, keys("client", tmp_path)) as cache:
        assert ask(cache, blob(images, PUBLIC)[0]).body == blob(images, PUBLIC)[1]
        assert ask(cache, blob(images, PRIVATE)[0]).status == 401
    assert [(each.method, each.path.split("/")[2]) for each in upstream.requests.select(kind="blob", status=200)] == [
        ("HEAD", "public")
    ]
    assert upstream.requests.count(kind="object") == 1
    # With a credential the private one would have been given.
    assert upstream.requests.count(kind="blob", method="GET", status=307) == 1


@pytest.mark.parametrize("scheme", ["bearer"], indirect=True)
def test_a_fill_proves_nothing(
    tmp_path: Path, upstream: LyingUpstream, images: dict[str, Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the cache's credential fetches says nothing of strangers' rights: what was known of them is not renewed."""
    with serving(tmp_path, upstream, keys("client", tmp_path)) as cache:
        assert ask(cache, tag(PUBLIC)).status == 200
        upstream.registry.access.private[PUBLIC] = {"robot"}
        upstream.registry.access.revoke()
        monkeypatch.setattr(rights, "KEEP_SECONDS", -1.0)  # whatever is written from now on is over
        target, data = blob(images, PUBLIC)
        assert ask(cache, target).body == data
        reply = ask(cache, target)
        assert (reply.outcome, reply.headers["X-Cache-Reason"]) == ("HIT", "rights known")


def test_the_clients_right_by_a_wrong_credential(
    tmp_path: Path, upstream: LyingUpstream, scheme: Scheme, images: dict[str, Image], caplog: pytest.LogCaptureFixture
) -> None:
    """What strangers may have comes as to a stranger, and the rest is the registry's own 401."""
    with serving(tmp_path, upstream, keys("client", tmp_path, "robot:wrong")) as cache:
        for each in everything(images, PUBLIC):
            assert ask(cache, each).status == 200
        reply = ask(cache, tag(PRIVATE))
        assert (reply.status, reply.headers["WWW-Authenticate"].split()[0].lower()) == (401, scheme)
    # By Basic what is public is given without a challenge, and the credential is not sent.
    assert ("credentials.file: registry.demo answered 401 for public/app" in caplog.text) is (scheme == "bearer")


# Open.


def test_open_asks_nobody(
    tmp_path: Path,
    upstream: LyingUpstream,
    images: dict[str, Image],
    scheme: Scheme,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever may connect has what is cached, and only that; the log says so at the start."""
    with serving(tmp_path, upstream, "rights = 'open'") as cache:
        [line] = [record for record in caplog.records if "rights is open" in record.getMessage()]
        assert line.levelno == logging.WARNING
        assert line.getMessage().startswith("registries.registry.demo.rights is open: whoever may connect")
        assert ask(cache, "/v2/").outcome == "LOCAL"
        ann = person(cache, scheme, "ann")
        assert [ask(cache, each).status for each in everything(images, PRIVATE)] == [401] * 3  # nothing is cached
        assert [ask(cache, each, ann).status for each in everything(images, PRIVATE)] == [200] * 3
        upstream.requests.clear()
        for authorization in ("", liar(scheme)):
            for each in everything(images, PRIVATE)[1:]:
                reply = ask(cache, each, authorization)
                assert (reply.status, reply.outcome) == (200, "HIT")
                assert reply.headers["X-Cache-Reason"] == "rights are open"
        assert len(upstream.requests) == 0
        for method in ("GET", "HEAD"):
            reply = ask(cache, tag(PRIVATE), method=method)
            assert (reply.status, reply.outcome) == (200, "HIT")
            assert reply.headers["Docker-Content-Digest"] == images[PRIVATE].index.digest
            assert "this is what it was" in reply.headers["X-Cache-Reason"]
        for each in (tag(OTHER), blob(images, OTHER)[0]):
            assert ask(cache, each).status == 401
        # A repository that is not known to hold a digest opens nothing.
        assert ask(cache, blob(images, PRIVATE, PUBLIC)[0]).status == 404
        with cache.client("mirror") as mirror:
            catalog = mirror.get(f"/v2/_catalog?ns={cache.registry}")
            assert json.loads(catalog.body)["repositories"] == [PRIVATE]


def test_open_fetches_by_the_caches_credential(
    tmp_path: Path, upstream: LyingUpstream, images: dict[str, Image]
) -> None:
    """What is not cached is fetched by the cache's credential, if there is one."""
    with serving(tmp_path, upstream, keys("open", tmp_path)) as cache:
        assert ask(cache, tag(PRIVATE)).status == 200
        assert ask(cache, blob(images, PRIVATE)[0]).body == blob(images, PRIVATE)[1]


# What is kept, and what is not.


def test_verdicts_tell_the_modes_apart(tmp_path: Path) -> None:
    """A yes to the cache's credential is none to strangers, to another credential, or in another mode."""
    credential, repository = Credential("Basic YTpi"), Repository("team/app")

    def mode(rights: str, owner: str) -> Modes:
        file = tmp_path / "config.toml"
        file.write_text(f"[registries.'quay.io']\nrights = '{rights}'\ncredentials = {{ env = 'A' }}\n")
        return Modes(load(file=file, environ={}), lambda registry, _: owner if registry == "quay.io" else "")

    index = Index(tmp_path / "index")
    try:
        modes = {
            (rights, owner): Verdicts(index, modes=mode(rights, owner))
            for rights in ("client", "shared")
            for owner in ("one", "other")
        }
        shared = modes["shared", "one"]
        shared.keep("quay.io", repository, None)
        index.put("barrier", "x")  # written in order, in one thread
        allowed = {mode: verdicts.allow("quay.io", repository, None) for mode, verdicts in modes.items()}
        assert allowed == {mode: mode == ("shared", "one") for mode in modes}
        assert not any(verdicts.allow("quay.io", repository, credential) for verdicts in modes.values())
        shared.keep("quay.io", repository, credential)
        modes["client", "one"].keep("quay.io", Repository("public"), None)
        index.put("barrier", "x")  # written in order, in one thread
        assert all(verdicts.allow("quay.io", repository, credential) for verdicts in modes.values())
        assert not modes["client", "one"].allow("quay.io", repository, None)
        assert not shared.allow("ghcr.io", repository, None)
        # What strangers may have everybody may.
        assert all(verdicts.allow("quay.io", Repository("public"), None) for verdicts in modes.values())
        assert Verdicts(index, modes=mode("open", "")).allow("quay.io", Repository("any"), None)
    finally:
        index.close()


@pytest.mark.parametrize("rights", ["client", "shared", "open"])
def test_no_secret_stays_anywhere(
    tmp_path: Path,
    upstream: LyingUpstream,
    images: dict[str, Image],
    rights: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither a file of the cache nor a line of its log holds the credential, or a token got with it."""
    with caplog.at_level(logging.DEBUG), serving(tmp_path, upstream, keys(rights, tmp_path)) as cache:
        for name in (PRIVATE, PUBLIC):
            for each in everything(images, name) * 2:
                ask(cache, each)
        upstream.registry.access.users.clear()
        upstream.registry.access.revoke()
        ask(cache, tag(PRIVATE))
        upstream.stop()
        ask(cache, tag(PRIVATE))
        said = cache.log.text + caplog.text
    secrets = {each.headers.get("authorization", "").partition(" ")[2] for each in upstream.requests} - {""}
    secrets |= {USERS["robot"], ROBOT}
    assert [each for each in secrets if each in said] == []
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path.name for path in files for each in secrets if each.encode() in path.read_bytes()] == []


class _Issuer(BaseHTTPRequestHandler):
    """A registry whose realm takes identity tokens."""

    protocol_version = "HTTP/1.1"
    forms: list[str]

    def do_HEAD(self) -> None:
        good = self.headers["Authorization"] == "Bearer issued"
        challenge = f'Bearer realm="https://{self.headers["Host"]}/token",service="id"'
        self._answer(404 if good else 401, b"", {} if good else {"WWW-Authenticate": challenge})

    do_GET = do_HEAD

    def do_POST(self) -> None:
        self.forms.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self._answer(200, b'{"access_token": "issued"}', {})

    def _answer(self, status: int, content: bytes, fields: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (fields | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("scheme", ["basic"], indirect=True)
def test_identity_tokens(tmp_path: Path, upstream: LyingUpstream) -> None:
    """The identity token of docker's configuration is posted to the realm, and what it gives is used."""
    forms: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Issuer", (_Issuer,), {"forms": forms}))
    context: ssl.SSLContext = upstream.trust.certify("id.demo")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    file = tmp_path / "config.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps({"auths": {"id.demo": {"auth": "", "identitytoken": "identity-secret"}}}))
    table = f"""[registries."id.demo"]
url = "https://id.demo:{server.server_port}"
resolve = "127.0.0.1"
rights = "shared"
credentials = {{ docker_config = "{file}" }}
"""
    try:
        with serving(tmp_path, upstream, "", more=table) as cache, cache.client(name="id.demo") as client:
            assert client.get(tag(PRIVATE)).status == 404
            assert client.get(tag(PRIVATE)).status == 404
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    [form] = forms
    assert "grant_type=refresh_token" in form
    assert "refresh_token=identity-secret" in form
