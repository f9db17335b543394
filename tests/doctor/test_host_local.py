"""The local registry on its host: real names, certificates, directories and sockets, with one fault at a time."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from mitm_cache.ca import CertificateAuthority
from mitm_cache.cache.layout import open_layout
from mitm_cache.config import Config, load
from mitm_cache.demo.image import KIB, Image, generate
from mitm_cache.doctor import host_local, rounds, service
from mitm_cache.doctor.finding import Finding, Status
from mitm_cache.doctor.host_disk import User
from mitm_cache.doctor.probes import Resolution
from mitm_cache.doctor.scene import Scene
from mitm_cache.doctor.service import Service
from mitm_cache.parsing import Endpoint
from tests.doctor.nodes import scene, worst
from tests.doctor.servers import answering
from tests.fakes.daemon import FakeDaemon
from tests.fakes.registry import LyingUpstream
from tests.local.registry import digest_of
from tests.needs import needs_root
from tests.serving import LISTENERS, Threaded, in_thread

HERE = "127.0.0.1"
ELSEWHERE = "192.0.2.1"  # RFC 5737: nobody's
STOPPED = Service(endpoint=Endpoint(HERE, 9500))
NAMED = '[local]\nnames = ["localhost:5000", "registry.example", "mine/"]\n'


def configured(tmp_path: Path, text: str = NAMED) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(f'data_dir = "{tmp_path / "data"}"\n{text}')
    config = load(file=path, environ={})
    config.data_dir.mkdir(exist_ok=True)
    return config


def named(name: str, *addresses: str, listening: tuple[str, ...] = ("::",), **heard: str) -> Finding:
    """What is found of a name that has these addresses."""
    resolution = Resolution(addresses, "" if addresses else "no such name")
    said = dict(zip(addresses, heard.values(), strict=False))
    return host_local.judge_name(name, resolution, said, listening)


# Its names.


def test_names() -> None:
    """Nowhere, here, here without a listener, elsewhere, and where another server answers."""
    nowhere = named("registry.example")
    assert (nowhere.status, nowhere.words) == (Status.WARN, "cannot be resolved here: no such name")
    assert nowhere.cure.startswith("a record of registry.example in DNS")
    assert named("registry.example", HERE).status is Status.OK
    assert named("registry.example", ELSEWHERE, heard="").words == f"leads to this cache ({ELSEWHERE})"  # forwarded
    closed = named("registry.example:5000", HERE, listening=())
    assert (closed.status, closed.cure.partition(";")[0]) == (Status.WARN, 'listen.mirror = [":5000"]')
    assert "does not listen on 5000" in closed.words
    assert 'listen.tls = [":443"]' in named("registry.example", HERE, listening=(), heard="port 443 is refused").cure
    away = named("registry.example", ELSEWHERE)
    assert (away.status, away.words) == (Status.WARN, f"leads to {ELSEWHERE}, which is no address of this machine")
    silent = named("registry.example", HERE, ELSEWHERE, one="", other="port 443 is silent")
    assert (silent.status, silent.words.endswith("of this machine: port 443 is silent")) == (Status.WARN, True)
    other = named("registry.example", HERE, heard="another server answers 404")
    assert other.status is Status.FAIL
    assert "the cache does not answer there: another server answers 404" in other.words
    both = named("localhost:5000", "::1", HERE, six="port 5000 is refused", four="")
    assert both.status is Status.OK  # clients try the one after the other


@pytest.fixture(scope="module")
def image() -> Image:
    return generate(sizes=[KIB], platforms=["linux/amd64"])


@pytest.fixture
def cache(tmp_path: Path, upstream: LyingUpstream) -> Iterator[Threaded]:
    more = '[local]\nnames = ["localhost", "registry.example"]\nmax_size = "1G"\n'
    with in_thread(tmp_path / "data", upstream, listen=(*LISTENERS, "admin"), more=more) as cache:
        yield cache


def at(cache: Threaded) -> tuple[Config, Service]:
    """The configuration with the admin listener where it is, and what that tells."""
    config = replace(cache.app.config, listen={"admin": (Endpoint(*cache.address("admin")),)})
    return config, service.look(config)


@pytest.mark.parametrize("listener", ["tls", "clear", "mirror"])
def test_who_answers(cache: Threaded, listener: str) -> None:
    """The cache's own answer is known, by TLS and in clear text; at another name it is Docker Hub's mirror, or none."""
    _, port = cache.address(listener)
    assert host_local.hear(f"registry.example:{port}", HERE) == ""
    assert host_local.hear(f"other.example:{port}", HERE) != ""
    with socket.create_server((HERE, 0)) as taken:
        port = taken.getsockname()[1]
    assert host_local.hear(f"registry.example:{port}", HERE) == f"port {port} is refused"


@pytest.mark.parametrize("listener", ["clear", "mirror"])
def test_a_service_that_runs(cache: Threaded, listener: str) -> None:
    """By its own names it is found; another server at one of them is not it."""
    config, running = at(cache)
    _, port = cache.address(listener)
    found = worst(host_local.check_name(config, running, f"localhost:{port}"))
    assert (found.status, found.check) == (Status.OK, "local")
    assert "leads to this cache" in found.words
    with answering(200, body=b"{}") as port:
        other = worst(host_local.check_name(config, running, f"localhost:{port}"))
    assert (other.status, "does not listen on" in other.words) == (Status.WARN, True)


def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    """The system's own resolver is asked (RFC 6761: invalid is never a host)."""
    found = worst(host_local.check_name(configured(tmp_path), STOPPED, "registry.invalid"))
    assert (found.status, "cannot be resolved here" in found.words) == (Status.WARN, True)


# Its certificate.


def certificate(tmp_path: Path, config: Config, days: float = 0) -> Finding:
    now = datetime.now(UTC) + timedelta(days=days)
    return worst(host_local.check_certificate(scene(tmp_path, now=now.timestamp), config, STOPPED))


def test_minted(tmp_path: Path) -> None:
    """The CA has to be one that may sign for the name; where no name needs TLS there is nothing to sign."""
    config = configured(tmp_path)
    assert certificate(tmp_path, config).status is Status.SKIP  # no CA yet
    CertificateAuthority.create(config.ca_dir, permitted=config.permitted_names(), now=datetime.now(UTC))
    assert certificate(tmp_path, config).words == "the CA may sign for registry.example"
    later = configured(tmp_path, NAMED.replace("registry.example", "new.corp.example"))
    outside = certificate(tmp_path, later)
    assert (outside.status, outside.words) == (Status.FAIL, "the CA may not sign for new.corp.example")
    assert "mitm-cache ca rotate" in outside.cure
    assert "local.cert" in outside.cure
    clear = configured(tmp_path, '[local]\nnames = ["localhost:5000", "10.0.0.5:5000", "mine/"]\n')
    assert certificate(tmp_path, clear).status is Status.OK


def given(tmp_path: Path, *names: str, settings: str = NAMED) -> Config:
    """A configuration with a certificate from elsewhere for these names, valid for 90 days."""
    leaf = trustme.CA().issue_cert(*names, not_after=datetime.now(UTC) + timedelta(days=90))
    chain, key = tmp_path / "local.crt", tmp_path / "local.key"
    chain.write_bytes(b"".join(each.bytes() for each in leaf.cert_chain_pems))
    key.touch(0o600)
    key.write_bytes(leaf.private_key_pem.bytes())
    return configured(tmp_path, f'{settings}cert = "{chain}"\nkey = "{key}"\n')


@pytest.mark.parametrize(
    ("days", "status", "words"),
    [
        (0, Status.OK, "is for its names, valid for 89 days more"),
        (77, Status.WARN, "ends in 12 days"),
        (91, Status.FAIL, "has ended"),
        (-36500, Status.FAIL, "is valid from"),
    ],
)
def test_given(tmp_path: Path, days: int, status: Status, words: str) -> None:
    """The days that are left of one from elsewhere."""
    found = certificate(tmp_path, given(tmp_path, "registry.example"), days)
    assert (found.status, words in found.words) == (status, True), found
    assert status is Status.OK or "mitm-cache reload" in found.cure


def test_given_for_others(tmp_path: Path) -> None:
    """One for none of the names stops the start; one for some of them leaves the others without TLS."""
    found = certificate(tmp_path, given(tmp_path, "other.example"))
    assert (found.status, "local.names has none of them" in found.words) == (Status.FAIL, True)
    config = given(tmp_path, "registry.example")
    assert certificate(tmp_path, config).status is Status.OK
    more = given(tmp_path, "registry.example", settings=NAMED.replace("mine/", "b.example"))
    some = certificate(tmp_path, more)
    assert (some.status, "is not for b.example" in some.words) == (Status.WARN, True)


def test_given_is_damaged(tmp_path: Path) -> None:
    """A key that is not there, or that everybody may read, is told with its file."""
    config = given(tmp_path, "registry.example")
    key = tmp_path / "local.key"
    key.chmod(0o644)
    assert f"chmod 600 {key}" in certificate(tmp_path, config).words
    key.unlink()
    missing = certificate(tmp_path, config)
    assert (missing.status, "is missing" in missing.words) == (Status.FAIL, True)


@needs_root()
def test_given_to_somebody_else(tmp_path: Path) -> None:
    """The service's user has to be able to read the key, whoever runs the doctor."""
    config = given(tmp_path, "registry.example")
    os.chown(config.data_dir, 4242, 4242)
    found = certificate(tmp_path, config)
    assert found.status is Status.FAIL
    assert found.words.startswith("the service's user ")
    assert found.subject == str(tmp_path / "local.key")
    os.chown(tmp_path / "local.key", 4242, 4242)
    assert certificate(tmp_path, config).status is Status.OK


# Its room.

GIB = 1 << 30


@pytest.mark.parametrize(
    ("held", "limit", "total", "room", "status", "cure"),
    [
        (0, 15, 100, 90, Status.OK, ""),
        (13, 15, 100, 90, Status.OK, ""),
        (14, 15, 100, 90, Status.WARN, "mitm-cache rm local/"),
        (15, 15, 100, 90, Status.FAIL, "mitm-cache rm local/"),
        (5, 50, 100, 10, Status.WARN, f'local.max_size = "{14 << 10}M"'),
        (0, 200, 100, 90, Status.FAIL, 'local.max_size = "15%"'),
    ],
)
def test_room(held: int, limit: int, total: int, room: int, status: Status, cure: str) -> None:
    """In GiB: enough, nearly used up, used up, more than the disk has left, and more than it is."""
    found = host_local.judge_room(held=held * GIB, limit=limit * GIB, total=total * GIB, room=room * GIB)
    assert (found.status, cure in found.cure) == (status, True), found


def test_room_is_measured(cache: Threaded, tmp_path: Path) -> None:
    """What was pushed counts, and what is cached of others does not."""
    config, running = at(cache)
    layer = os.urandom(200_000)
    with cache.client("mirror", name="localhost") as client:
        assert client.ask("POST", f"/v2/app/blobs/uploads/?digest={digest_of(layer)}", body=layer).status == 201
    assert worst(host_local.check_room(config, running)).words.startswith("195.3 KiB of 1.0 GiB are used")
    tight = replace(config, local=replace(config.local, max_size=replace(config.local.max_size, bytes=210_000)))
    assert worst(host_local.check_room(tight, running)).status is Status.WARN
    assert worst(host_local.check_room(tight, STOPPED)).status is Status.WARN
    away = configured(tmp_path)
    away.data_dir.rename(tmp_path / "away")
    assert worst(host_local.check_room(away, STOPPED)).status is Status.SKIP


# Its daemon.


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder that everybody may enter, as pytest's own are not; its name is short, as that of a socket has to be."""
    folder = Path(tempfile.mkdtemp(prefix="mc", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def daemon(tmp_path: Path, url: str) -> Finding:
    config = configured(tmp_path, f'{NAMED}daemon = "{url}"\n')
    return worst(host_local.check_daemon(scene(tmp_path), config, STOPPED))


def test_daemon(tmp_path: Path, sockets: Path) -> None:
    """One that answers; a socket that nobody is at; none; and something else at its place."""
    path = sockets / "docker.sock"
    with FakeDaemon(path) as fake:
        found = daemon(tmp_path, fake.url)
        assert (found.status, found.words.partition(",")[0]) == (Status.OK, "answers")
    gone = daemon(tmp_path, fake.url)
    assert (gone.status, gone.words) == (Status.FAIL, "there is no such file")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    refused = daemon(tmp_path, fake.url)
    assert refused.status is Status.FAIL
    assert refused.words.endswith("Connection refused")
    assert refused.cure.startswith("sudo systemctl start docker")
    path.unlink()
    path.write_text("")
    assert daemon(tmp_path, fake.url).words == "is no socket"
    with socket.create_server((HERE, 0)) as taken:
        port = taken.getsockname()[1]
    assert daemon(tmp_path, f"tcp://{HERE}:{port}").status is Status.FAIL


def test_who_may_use_the_daemon(sockets: Path) -> None:
    """The service's user and its groups against the socket's mode, and the folders above it."""
    path = sockets / "docker.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        path.chmod(0o660)
        gid = path.stat().st_gid
        stranger = User(4242, frozenset({4242}), "somebody")
        (found,) = host_local.judge_socket(path, stranger)
        assert (found.status, found.words.partition(":")[0]) == (
            Status.FAIL,
            "the service's user somebody may not use it",
        )
        assert found.cure.startswith("sudo usermod --append --groups ")
        assert found.cure.endswith(" somebody, then sudo systemctl restart mitm-cache")
        assert f"--group-add {gid} in a container" in found.words
        assert list(host_local.judge_socket(path, replace(stranger, groups=frozenset({gid})))) == []
        path.chmod(0o600)
        (closed,) = host_local.judge_socket(path, replace(stranger, groups=frozenset({gid})))
        assert "mode 0600" in closed.words
        path.chmod(0o666)
        assert list(host_local.judge_socket(path, stranger)) == []
        sockets.chmod(0o700)
        (barred,) = host_local.judge_socket(path, stranger)
        assert barred.words == f"the service's user somebody may not enter {sockets}"


@needs_root()
def test_the_groups_of_the_service(tmp_path: Path, sockets: Path) -> None:
    """A group counts that the process has, by its unit or its container, though the system knows nothing of it."""
    config = configured(tmp_path, f'{NAMED}daemon = "unix://{sockets}/docker.sock"\n')
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {}, setpgroup=0)
    try:
        running = Service(endpoint=None, document={"pid": pid})
        user = host_local._user(scene(tmp_path), config, running)
        assert user is not None
        assert user.groups == frozenset({os.getgid(), *os.getgroups()})
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


# All of it.


def test_whole(cache: Threaded, tmp_path: Path) -> None:
    """A host that is well has a line for each; one without a local registry has none."""
    config, _ = at(cache)
    config = replace(config, local=replace(config.local, names=(f"localhost:{cache.address('mirror')[1]}",)))
    here = Scene(
        config=lambda: config, known=config.known, file=tmp_path / "config.toml", root=tmp_path,
        environ=scene(tmp_path).environ,
    )  # fmt: skip
    found = [each for each in rounds.visit(here, node=False, host=True) if each.check == "local"]
    assert [each.status for each in found] == [Status.OK] * 3, found
    without = configured(tmp_path, "")
    open_layout(without.data_dir)
    bare = replace(here, config=lambda: without)
    assert "local" not in {each.check for each in rounds.visit(bare, node=False, host=True)}
