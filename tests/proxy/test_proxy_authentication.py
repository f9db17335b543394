"""Users of the cache itself: as a proxy it wants them, and as a registry it keeps their passwords from upstream."""

import json
import os
import socket
import ssl
import subprocess
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import bcrypt
import pytest

from mitm_cache.answers import explain
from mitm_cache.demo.image import KIB, generate
from mitm_cache.errors import ConfigError, LoginError
from mitm_cache.proxy.front import MAX_LOGINS
from mitm_cache.users.attempts import BUDGET
from tests.fakes.origin import Origin
from tests.fakes.registry import LyingUpstream, Witness
from tests.needs import needs_tool
from tests.proxy.raw import Raw, dial, request
from tests.proxy.test_connect import connect, get
from tests.serving import LISTENERS, Line, Threaded, in_thread

NAME = "registry.demo"
PUSH = "push.demo"
PASSWORD = "planted s:e/c@r%t"
WRONG = "planted-wrong"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def basic(name: str, password: str = PASSWORD) -> str:
    return f"Basic {b64encode(f'{name}:{password}'.encode()).decode()}"


def write_users(path: Path, cost: int = 4, **passwords: str) -> Path:
    hashes = {name: bcrypt.hashpw(word.encode(), bcrypt.gensalt(cost)).decode() for name, word in passwords.items()}
    return put(path, "".join(f"{name}:{hash_}\n" for name, hash_ in hashes.items()))


def put(path: Path, text: str) -> Path:
    """Write it as `user add` does: whoever looks meanwhile has the old one or the new one, and not half of it."""
    new = path.with_name(f"{path.name}.new")
    new.touch(mode=0o600)
    new.write_text(text)
    return new.replace(path)


@dataclass(frozen=True, slots=True)
class Scene:
    cache: Threaded
    upstream: LyingUpstream
    origin: Origin
    elsewhere: Witness
    users: Path

    @property
    def proxy(self) -> str:
        host, port = self.cache.address("connect")
        return f"{host}:{port}"

    def manifest(self) -> str:
        return f"/v2/team/app/manifests/{self.upstream.registry.repositories['team/app'].tags['1']}"


@contextmanager
def staged(directory: Path, *, with_users: bool = True, cost: int = 4) -> Iterator[Scene]:
    users = write_users(directory / "users", cost, ann=PASSWORD, bob="other")
    with (
        LyingUpstream(directory) as upstream,
        Origin(upstream.trust, PUSH) as origin,
        Witness(tls=upstream.trust.certify("127.0.0.1")) as elsewhere,
    ):
        upstream.registry.put("team/app", generate(sizes=[3 * KIB], platforms=["linux/amd64"]), "1")
        environ = {
            "MITM_CACHE_CLIENTS_CONNECT_PORTS": str(elsewhere.address[1]),
            "MITM_CACHE_UPSTREAM_ALLOW_PRIVATE": "true",
            "MITM_CACHE_CLIENTS_USERS_FILE": str(users) if with_users else "",
        }
        listen = (*LISTENERS, "admin")
        configured = in_thread(
            directory / "data", upstream, listen=listen, more=origin.configuration(), environ=environ
        )
        with configured as cache:
            yield Scene(cache, upstream, origin, elsewhere, users)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with staged(tmp_path_factory.mktemp("users")) as scene:
        yield scene


def until(done: Callable[[], bool]) -> None:
    """Ask again and again, for ten seconds."""
    end = time.monotonic() + 10
    while not done():
        assert time.monotonic() < end


def line_after(scene: Scene, before: int, **where: str | int) -> Line:
    """The next access line of a kind, when there were some before."""
    scene.cache.log.wait(before + 1, timeout=30, **where)
    return scene.cache.log.select(**where)[before]


# --- CONNECT -----------------------------------------------------------------------------------------------------


def login(target: str, name: str = "", password: str = PASSWORD) -> bytes:
    head = connect(target).removesuffix("\r\n")
    return f"{head}Proxy-Authorization: {basic(name, password)}\r\n\r\n".encode() if name else f"{head}\r\n".encode()


@pytest.mark.parametrize("wrong", [("", ""), ("ann", WRONG), ("eve", PASSWORD), ("ann", "")])
def test_a_client_tries_again(scene: Scene, wrong: tuple[str, str]) -> None:
    """Without a right password CONNECT is answered 407 with a challenge, and the connection stays for another try."""
    before = scene.cache.log.count(status=407), scene.cache.log.count(status=200, user="ann")
    with Raw(scene.cache.address("connect")) as wire:
        wire.send(login(f"{NAME}:443", *wrong))
        refused = wire.answer()
        assert refused.status == 407
        assert refused.headers["proxy-authenticate"] == 'Basic realm="mitm-cache"'
        assert "connection" not in refused.headers
        assert json.loads(refused.body)["errors"][0]["code"] == "UNAUTHORIZED"
        wire.send(login(f"{NAME}:443", "ann"))
        assert wire.head()[0] == 200
        context = ssl.create_default_context(cafile=scene.cache.ca_file)
        answer, _ = get(wire.socket, NAME, scene.manifest(), context)
    assert answer.startswith("HTTP/1.1 200 ")
    line = line_after(scene, before[0], status=407)
    assert (line["outcome"], line["user"], line["method"]) == ("REFUSED", "", "CONNECT")
    assert line_after(scene, before[1], status=200, user="ann")["listener"] == "connect"


def test_tries_end(scene: Scene) -> None:
    """A connection has some tries; the last answer closes it. Nothing that follows is taken for anything else."""
    with Raw(scene.cache.address("connect")) as wire:
        for number in range(1, MAX_LOGINS + 1):
            wire.send(login(f"{NAME}:443"))
            answer = wire.answer()
            assert answer.status == 407
            assert answer.headers.get("connection") == ("close" if number == MAX_LOGINS else None)
        assert wire.rest() == b""


def test_two_at_once(scene: Scene) -> None:
    """A client that sends its second CONNECT with the first gets both answers, in order."""
    with Raw(scene.cache.address("connect")) as wire:
        wire.send(login(f"{NAME}:443"), login(f"{NAME}:443", "ann"))
        assert wire.answer().status == 407
        assert wire.head()[0] == 200


def test_tls_after_a_refusal(scene: Scene) -> None:
    """A client that goes on as if it had been let in gets no further."""
    with Raw(scene.cache.address("connect")) as wire:
        wire.send(login(f"{NAME}:443"))
        assert wire.answer().status == 407
        context = ssl.create_default_context(cafile=scene.cache.ca_file)
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(wire.socket, server_hostname=NAME)


def test_a_tunnel_has_a_user(scene: Scene) -> None:
    """A tunnel is opened for users only, the journal says whose it was, and the host at its end sees no password."""
    target = f"127.0.0.1:{scene.elsewhere.address[1]}"
    before, heard = scene.cache.log.count(outcome="TUNNEL"), scene.elsewhere.requests.count()
    with Raw(scene.cache.address("connect")) as wire:
        wire.send(login(target, "ann", WRONG))
        assert wire.answer().status == 407
        assert scene.elsewhere.requests.count() == heard
        wire.send(login(target, "ann"))
        assert wire.head()[0] == 200
        _, body = get(wire.socket, "127.0.0.1", "/x", scene.upstream.trust.context())
    assert body == b"elsewhere"
    assert line_after(scene, before, outcome="TUNNEL")["user"] == "ann"
    [*_, heard_last] = scene.elsewhere.requests.select()
    assert "proxy-authorization" not in {name.lower() for name in heard_last.headers}


def test_requests_inside_have_the_user(scene: Scene) -> None:
    """Every request behind a CONNECT is its user's, and none of it has the proxy's password upstream."""
    context = ssl.create_default_context(cafile=scene.cache.ca_file)
    before = scene.cache.log.count(user="ann", method="GET")
    with Raw(scene.cache.address("connect")) as wire:
        wire.send(login(f"{NAME}:443", "ann"))
        assert wire.head()[0] == 200
        with context.wrap_socket(wire.socket, server_hostname=NAME) as tls:
            wire.socket = tls
            for target in ("/v2/", scene.manifest()):
                wire.send(request(target, f"Proxy-Authorization: {basic('ann')}", host=NAME))
                assert wire.answer().status == 200
    assert scene.cache.log.wait(before + 2, user="ann", method="GET")
    heard = scene.upstream.requests.select()
    assert heard
    for incoming in heard:
        assert "proxy-authorization" not in {name.lower() for name in incoming.headers}


def test_passwords_are_not_tried_without_end(tmp_path: Path) -> None:
    """After some wrong passwords a client waits, with 429; whoever has been let in before still is."""
    with staged(tmp_path) as scene:
        statuses = []
        with Raw(scene.cache.address("connect")) as wire:
            wire.send(login(f"{NAME}:443", "ann"))
            assert wire.head()[0] == 200
        for number in range(BUDGET + 3):
            with Raw(scene.cache.address("connect")) as wire:
                wire.send(login(f"{NAME}:443", "ann", f"{WRONG}{number}"))
                statuses.append(wire.answer().status)
        assert statuses[:BUDGET] == [407] * BUDGET
        assert 429 in statuses[BUDGET:]
        with Raw(scene.cache.address("connect")) as wire:
            wire.send(login(f"{NAME}:443", "ann"))
            assert wire.head()[0] == 200
        with dial(scene.cache, "tls", name=PUSH) as wire:
            # It may be the right one, and is not shown to a registry.
            authorization = f"Authorization: {basic('bob', 'other')}"
            wire.send(request("/v2/team/app/blobs/uploads/", authorization, method="POST", host=PUSH))
            assert wire.answer().status == 429
        assert WRONG not in scene.cache.log.text


def test_the_file_changes_while_serving(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A user who is removed or added is one no more, or one from then on, within a second and without a restart."""
    with staged(tmp_path) as scene:

        def status(name: str, password: str) -> int:
            with Raw(scene.cache.address("connect")) as wire:
                wire.send(login(f"{NAME}:443", name, password))
                return wire.head()[0]

        assert [status("ann", PASSWORD), status("carl", "new")] == [200, 407]
        write_users(scene.users, carl="new")
        until(lambda: status("ann", PASSWORD) == 407)
        assert status("carl", "new") == 200
        put(scene.users, f"ann:{PASSWORD}\n")
        until(lambda: status("carl", "new") != 200 or "the users are those of before" in caplog.text)
        assert status("carl", "new") == 200
        assert PASSWORD not in caplog.text


def test_without_users_nothing_is_asked(tmp_path: Path) -> None:
    """Without users_file there is no challenge, whatever a client sends, and a password is the registry's."""
    with staged(tmp_path, with_users=False) as scene:
        for head in (login(f"{NAME}:443"), login(f"{NAME}:443", "ann")):
            with Raw(scene.cache.address("connect")) as wire:
                wire.send(head)
                assert wire.head()[0] == 200
        _, fields = relayed(scene, "tls", f"Authorization: {basic('ann')}")
        assert fields["authorization"] == basic("ann")


@pytest.mark.parametrize("content", ["", "ann:planted\n"], ids=["open to others", "malformed"])
def test_a_bad_file_stops_the_start(tmp_path: Path, content: str) -> None:
    """A file that is missing, open or malformed is an error at the start that names it."""
    users = tmp_path / "users"
    environ = {"MITM_CACHE_CLIENTS_USERS_FILE": str(users)}
    with LyingUpstream(tmp_path) as upstream:
        with pytest.raises(ConfigError, match="is missing"), in_thread(tmp_path / "data", upstream, environ=environ):
            pass
        users.write_text(content)
        users.chmod(0o600 if content else 0o644)
        with pytest.raises(ConfigError) as caught, in_thread(tmp_path / "data", upstream, environ=environ):
            pass
    assert str(users) in caught.value.message
    assert "planted" not in caught.value.message


# --- Authorization -----------------------------------------------------------------------------------------------


def relayed(scene: Scene, listener: str, *more: str, body: bytes = b"") -> tuple[str, dict[str, str]]:
    """What a registry hears of an upload."""
    with dial(scene.cache, listener, name=PUSH) as wire:
        lines = [*more, *([f"Content-Length: {len(body)}"] if body else [])]
        wire.send(request("/v2/team/app/blobs/uploads/", *lines, method="POST", host=PUSH), body)
        with scene.origin.accept() as talk:
            head = talk.head()
            assert talk.read(len(body)) == body
            talk.send(CLOSING)
            answer = wire.answer("POST")
            assert answer.status == 200
    scene.cache.log.wait(request_id=answer.headers["x-request-id"])  # so that who counts lines next counts it
    return head


@pytest.mark.parametrize("listener", ["tls", "clear"])
@pytest.mark.parametrize("body", [b"", b"x" * (300 * KIB)], ids=["no body", "body"])
def test_a_users_password_stays_here(scene: Scene, listener: str, body: bytes) -> None:
    """A right password is for the cache: the request is the user's, and upstream sees no credential at all."""
    before = scene.cache.log.count(user="bob")
    _, fields = relayed(scene, listener, f"Authorization: {basic('bob', 'other')}", body=body)
    assert "authorization" not in fields
    assert line_after(scene, before, user="bob")["outcome"] == "RELAY"


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(basic("bob", WRONG), id="another password"),
        pytest.param(basic("eve", "other"), id="another name"),
        pytest.param("Bearer other", id="a token"),
        pytest.param(basic("bob", "other").replace("Basic ", "Basic\t"), id="malformed"),
        pytest.param("Basic Ym9i", id="no colon"),
    ],
)
def test_everything_else_is_the_registrys(scene: Scene, authorization: str) -> None:
    """A registry may know a user of the same name: what is no user's password here goes upstream as it came."""
    before = scene.cache.log.count(outcome="RELAY")
    _, fields = relayed(scene, "tls", f"Authorization: {authorization}")
    assert fields["authorization"] == authorization
    assert line_after(scene, before, outcome="RELAY")["user"] == ""


@pytest.mark.parametrize("listener", ["tls", "clear", "mirror"])
def test_pulls_of_a_user(scene: Scene, listener: str) -> None:
    """A pull with a user's password asks upstream as a stranger; the second time it is known, and no less."""
    before = scene.cache.log.count(listener=listener, user="ann")
    with scene.cache.client(listener) as client:
        target = scene.manifest() + (f"?ns={NAME}" if listener == "mirror" else "")
        for _ in range(2):
            assert client.get(target, {"Authorization": basic("ann")}).status == 200
    assert scene.cache.log.wait(before + 2, listener=listener, user="ann")
    heard = scene.upstream.requests.select()
    assert heard
    for incoming in heard:
        assert "authorization" not in {name.lower() for name in incoming.headers}


@pytest.mark.parametrize("password", ["other", WRONG], ids=["right", "wrong"])
def test_a_client_that_leaves_meanwhile(tmp_path: Path, password: str) -> None:
    """While a password is looked at others are answered; a client that is gone by then leaves nothing behind."""
    with staged(tmp_path, cost=12) as scene:
        with dial(scene.cache, "clear", name=NAME) as wire:
            wire.send(request(scene.manifest(), f"Authorization: {basic('bob', password)}", host=NAME))
            with scene.cache.client("clear") as other:
                assert other.get("/v2/").status == 200
        with dial(scene.cache, "clear", name=NAME) as wire:
            wire.send(request(scene.manifest(), f"Authorization: {basic('bob', password)}", host=NAME))
            wire.head()
        scene.cache.log.wait(3)
        assert scene.cache.log.count(user="bob") == (2 if password == "other" else 0)


def test_a_body_that_comes_meanwhile(tmp_path: Path) -> None:
    """What a client sends while its password is looked at reaches the registry, all of it and in order."""
    body = b"".join(b"%08d" % number for number in range(200_000))
    with staged(tmp_path, cost=11) as scene:
        _, fields = relayed(scene, "clear", f"Authorization: {basic('bob', 'other')}", body=body)
        assert "authorization" not in fields


def test_pages_take_anybody(scene: Scene) -> None:
    """The cache's own pages ask for nothing, and a wrong password there changes nothing."""
    with scene.cache.client("mirror", name="127.0.0.1") as client:
        assert client.get("/", {"Authorization": basic("ann", WRONG)}).status == 200


def test_the_login_that_a_rule_asks_for() -> None:
    """An answer 401 of the cache itself has a challenge and the document that clients print."""
    answer = explain(LoginError("a rule wants a user"), None)
    assert (answer.status, answer.outcome) == (401, "REFUSED")
    assert answer.headers.get_all("www-authenticate") == ['Basic realm="mitm-cache"']
    assert isinstance(answer.body, bytes)
    assert json.loads(answer.body)["errors"][0]["code"] == "UNAUTHORIZED"


# --- real clients ------------------------------------------------------------------------------------------------


def run_curl(scene: Scene, *more: str) -> "subprocess.CompletedProcess[str]":
    said = "%{http_connect} %{http_code} %{num_connects}"
    command = ["curl", "-q", "-sS", "--max-time", "20", "--cacert", str(scene.cache.ca_file), "-o", os.devnull]
    command += ["-w", said, *more, f"https://{NAME}{scene.manifest()}"]
    environ = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environ)


@needs_tool("curl", package="curl")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        pytest.param(["-U", f"ann:{PASSWORD}"], "200 200 1", id="at once"),
        pytest.param(["--proxy-anyauth", "-U", f"ann:{PASSWORD}"], "200 200 1", id="when asked, on one connection"),
        pytest.param(["-U", f"ann:{WRONG}"], "407 000 1", id="wrong"),
        pytest.param([], "407 000 1", id="none"),
    ],
)
def test_curl(scene: Scene, more: list[str], said: str) -> None:
    """curl logs in, at once or when it is asked to, and gives up where it cannot."""
    done = run_curl(scene, "-x", f"http://{scene.proxy}", *more)
    assert done.stdout == said, done.stderr


@needs_tool("curl", package="curl")
def test_curl_with_the_password_in_the_url(scene: Scene) -> None:
    """As an environment variable has it: percent-encoded."""
    done = run_curl(scene, "-x", f"http://ann:{quote(PASSWORD, safe='')}@{scene.proxy}")
    assert done.stdout == "200 200 1", done.stderr


@needs_tool("skopeo", package="skopeo")
@pytest.mark.parametrize("password", [PASSWORD, WRONG])
def test_skopeo(scene: Scene, tmp_path: Path, password: str) -> None:
    """Go's HTTP client, which dockerd, containerd, podman and skopeo have in common, takes it from HTTPS_PROXY."""
    (tmp_path / "ca.crt").write_bytes(scene.cache.ca_file.read_bytes())
    environ = {**os.environ, "HTTPS_PROXY": f"http://ann:{quote(password, safe='')}@{scene.proxy}", "NO_PROXY": ""}
    command = ["skopeo", "inspect", "--raw", "--cert-dir", str(tmp_path), f"docker://{NAME}/team/app:1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ)
    if password == PASSWORD:
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["schemaVersion"] == 2
    else:
        assert done.returncode != 0
        assert "Proxy Authentication Required" in done.stderr


# --- secrets -----------------------------------------------------------------------------------------------------


def test_no_secret_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever a client does with a password, it is in no log, no journal, no metric and no file of the cache."""
    with staged(tmp_path) as scene:
        secrets = [PASSWORD, WRONG, basic("ann").split()[1], basic("ann", WRONG).split()[1]]
        secrets += [line.partition(":")[2] for line in scene.users.read_text().splitlines()]
        said = []
        for password in (WRONG, PASSWORD):
            with Raw(scene.cache.address("connect")) as wire:
                wire.send(login(f"{NAME}:443", "ann", password))
                said.append(wire.socket.recv(1 << 16))
            for listener in ("tls", "clear", "mirror"):
                with scene.cache.client(listener) as client:
                    target = scene.manifest() + (f"?ns={NAME}" if listener == "mirror" else "")
                    said.append(client.get(target, {"Authorization": basic("ann", password)}).body)
        with socket.create_connection(scene.cache.address("connect")) as plain:
            plain.sendall(f"CONNECT {NAME} HTTP/1.1\r\nProxy-Authorization: {basic('ann')}\r\n\r\n".encode())
            said.append(plain.recv(1 << 16))
        scene.users.write_text(f"ann:{WRONG}\n")  # malformed: a clear password
        with urllib.request.urlopen(f"http://127.0.0.1:{scene.cache.address('admin')[1]}/metrics") as answer:
            metrics = answer.read()
        assert b"mitm_cache_" in metrics
        text = scene.cache.log.text
    files = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    captured = capfd.readouterr()
    told = b"".join(said) + files + metrics
    for secret in secrets:
        assert secret not in text + caplog.text + captured.out + captured.err
        assert secret.encode() not in told
