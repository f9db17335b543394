"""One supervisor and its workers: one address, one account, one download; and none of it ends with a worker."""

import base64
import json
import os
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mitm_cache.cli.reload import TIMEOUT
from mitm_cache.config import LISTENERS, load
from mitm_cache.demo.access import Access
from mitm_cache.demo.image import MIB
from mitm_cache.errors import ConfigError, UpstreamError
from mitm_cache.journal import AccessLine, Event
from mitm_cache.listening import bind_all, bind_places, close_others, share
from mitm_cache.workers import control
from mitm_cache.workers.count import processors
from tests.fakes.big import Pattern, big_image
from tests.fakes.registry import LyingUpstream
from tests.lab.process import wait_until
from tests.serving import Client, Process, process

NAME = "team/app"
LAYER = Pattern(4 * MIB, "big 0")
TWO = "[serve]\nworkers = 2\n"
FREE = {f"listen.{name}": ["127.0.0.1:0"] for name in LISTENERS}


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[LyingUpstream]:
    with LyingUpstream(tmp_path) as running:
        running.registry.put(NAME, big_image(4 * MIB), "1")
        yield running


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Services that are started have an admin listener."""
    monkeypatch.setenv("MITM_CACHE_LISTEN_ADMIN", "127.0.0.1:0")


def status(served: Process) -> dict[str, Any]:
    """What the admin listener tells."""
    return dict(json.loads(page(served, "/status")))


def page(served: Process, path: str) -> str:
    found = re.search(r"^admin\s+(\S+)", "".join(served.said), re.MULTILINE)
    assert found is not None
    with urllib.request.urlopen(f"http://{found[1]}{path}", timeout=20) as answer:
        return str(answer.read().decode())


def serving(served: Process) -> list[int]:
    """The workers that serve; the one that waits is not among them."""
    return [int(pid) for pid in status(served)["workers"]]


def worker_of(client: Client, served: Process) -> int:
    """The worker that has accepted a connection, by the kernel's tables of sockets and descriptors."""
    ends = [client.sock.getpeername()[1], client.sock.getsockname()[1]]
    found: set[str] = set()
    # The kernel writes the table piece by piece: a row may come twice, or not, while others change it.
    for _ in range(100):
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        found = {row[9] for row in rows if [int(end.rpartition(":")[2], 16) for end in row[1:3]] == ends}
        if found:
            break
    (inode,) = found
    for pid in served.workers:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if _target(link) == f"socket:[{inode}]":
                return pid
    raise AssertionError("nobody has accepted it")


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""  # closed a moment ago


@contextmanager
def client_of_each(served: Process, name: str | None = None) -> Iterator[list[Client]]:
    """Clients that are connected to one worker each, all of them different; `name`: of the registry they want."""
    with ExitStack() as stack:
        found: dict[int, Client] = {}
        for _ in range(64):
            client = stack.enter_context(served.client(name=name))
            client.get("/v2/")
            found.setdefault(worker_of(client, served), client)
            if len(found) == 2:
                break
        yield list(found.values())


def test_workers_share_an_address_a_download_and_an_account(
    tmp_path: Path, upstream: LyingUpstream, admin: None
) -> None:
    """The kernel leads clients to both; who joins on the other one costs no second GET; the figures are of both."""
    digest = LAYER.digest
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(MIB))
    with process(tmp_path / "data", upstream, more=TWO) as served, client_of_each(served) as clients:
        assert len(clients) == 2
        answers = [client.open(f"/v2/{NAME}/blobs/{digest}") for client in clients]
        assert all(len(answer.read(MIB)) == MIB for answer in answers)
        assert status(served)["in_flight"] == 2
        gate.release()
        assert {len(answer.read()) for answer in answers} == {3 * MIB}
        assert upstream.requests.count(kind="object", method="GET") == 1
        lines = served.log.wait(2, digest=digest)
        assert sorted(line["outcome"] for line in lines) == ["JOINED", "MISS"]
        counted = status(served)
        assert counted["requests"]["JOINED"] == counted["requests"]["MISS"] == 1
        assert counted["bytes"]["sent"] >= 8 * MIB
        assert "mitm_cache_workers 2.0" in page(served, "/metrics")


def test_a_verdict_holds_at_every_worker(tmp_path: Path) -> None:
    """A credential's right is asked once for all workers."""
    users = {"ann": "secret", "bob": "secret"}
    access = Access(scheme="basic", users=users, private={NAME: set(users)})
    with LyingUpstream(tmp_path, access=access) as upstream:
        upstream.registry.put(NAME, big_image(4 * MIB), "1")
        with process(tmp_path / "data", upstream, more=TWO) as served, client_of_each(served) as clients:
            served.puller(user=("ann", "secret")).pull(NAME, "1")
            upstream.requests.clear()
            target = f"/v2/{NAME}/blobs/{LAYER.digest}"
            for client in (*clients, *clients):
                assert client.get(target, basic("bob")).outcome == "HIT"
            # Whether bob may have it, and perhaps whether strangers may: once, whichever worker wants to know.
            asked = [(each.method, each.status) for each in upstream.requests]
            assert [each for each in asked if each != ("HEAD", 401)] == [("HEAD", 200)]
            assert asked.count(("HEAD", 401)) <= 1
            assert {client.get(target, basic("eve")).status for client in clients} == {401}


def basic(user: str) -> Mapping[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:secret".encode()).decode()}


def test_a_worker_that_is_killed_gets_a_replacement(tmp_path: Path, upstream: LyingUpstream, admin: None) -> None:
    """The reason is told, no connection is refused meanwhile, and no figure goes back."""
    with process(tmp_path / "data", upstream, more=TWO) as served:
        served.puller().pull(NAME, "1")
        wait_until(lambda: len(served.workers) == 3, "a worker that waits")
        before = status(served)
        victim = serving(served)[0]
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: ask(served), range(32)))
        assert replies == [200] * 32
        seconds = time.monotonic() - began
        wait_until(lambda: len(serving(served)) == 2, "a replacement", tick=0.01)
        assert victim not in serving(served)
        after = status(served)
        assert all(after["requests"].get(outcome, 0) >= number for outcome, number in before["requests"].items())
        assert after["bytes"]["sent"] >= before["bytes"]["sent"]
        assert f"worker {victim} has ended: it was killed by SIGKILL; another takes its place now" in said(served)
        assert "mitm_cache_workers_replaced_total 1.0" in page(served, "/metrics")
        assert seconds < 25  # a connection that waited at the dead worker's socket is served before its client gives up


def ask(served: Process) -> int:
    with served.client() as client:
        return client.get(f"/v2/{NAME}/manifests/1").status


def said(served: Process) -> str:
    return "".join(served.said)


def test_the_only_worker_gets_a_replacement(tmp_path: Path, upstream: LyingUpstream) -> None:
    """Connections wait at the socket, which is never closed."""
    with process(tmp_path / "data", upstream) as served:
        first = served.pid
        os.kill(first, signal.SIGKILL)
        assert ask(served) == 200
        assert served.pid != first


def test_no_wrong_byte_while_workers_are_killed(tmp_path: Path, upstream: LyingUpstream, admin: None) -> None:
    """Eight clients pull from two workers of which one dies again and again: whole and right, or cut."""
    pulled: list[int] = []
    ended = threading.Event()

    def pull(served: Process) -> None:
        while not ended.is_set():
            try:
                served.puller(parallel=1).pull(NAME, "1")  # raises IntegrityError where a byte is wrong
                pulled.append(1)
            except UpstreamError:
                pass  # it was cut

    with process(tmp_path / "data", upstream, more=TWO) as served, ThreadPoolExecutor(8) as pool:
        pulls = [pool.submit(pull, served) for _ in range(8)]
        try:
            for _ in range(4):
                victim = serving(served)[0]
                os.kill(victim, signal.SIGKILL)
                gone = victim
                wait_until(lambda: gone not in (now := serving(served)) and len(now) == 2, "a replacement")  # noqa: B023
            wait_until(lambda: len(pulled) >= 8, "whole pulls, however slow the machine")
        finally:
            ended.set()
        for each in pulls:
            each.result()


def test_workers_end_with_their_supervisor(tmp_path: Path, upstream: LyingUpstream) -> None:
    """However it ends, nobody is left who would accept connections at its address."""
    with process(tmp_path / "data", upstream, more=TWO) as served:
        workers = served.workers
        served.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the end of the workers")


def test_the_first_signal_waits_for_what_is_under_way(tmp_path: Path, upstream: LyingUpstream) -> None:
    """A delivery is finished; nobody is let in meanwhile."""
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(MIB))
    with process(tmp_path / "data", upstream, more=TWO) as served, served.client() as client:
        answer = client.open(f"/v2/{NAME}/blobs/{LAYER.digest}")
        assert len(answer.read(MIB)) == MIB
        os.kill(served.popen.pid, signal.SIGTERM)
        wait_until(lambda: refused(served), "nobody is let in")
        gate.release()
        assert len(answer.read()) == 3 * MIB
        assert served.popen.wait(20) == 0


def refused(served: Process) -> bool:
    try:
        with served.client() as client:
            client.get("/v2/")
    except OSError:
        return True
    return False


@pytest.mark.parametrize("again", [False, True])
def test_the_end_does_not_wait_for_ever(tmp_path: Path, upstream: LyingUpstream, again: bool) -> None:
    """What is under way has serve.drain, and none of it once the signal comes a second time."""
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(MIB))
    drain = "10m" if again else "0.2s"
    with (
        process(tmp_path / "data", upstream, more=f'[serve]\ndrain = "{drain}"\n') as served,
        served.client() as client,
    ):
        answer = client.open(f"/v2/{NAME}/blobs/{LAYER.digest}")
        assert len(answer.read(MIB)) == MIB
        os.kill(served.popen.pid, signal.SIGTERM)
        if again:
            wait_until(lambda: refused(served), "nobody is let in")
            os.kill(served.popen.pid, signal.SIGTERM)
        assert served.popen.wait(20) == 0


def edit(served: Process, change: Callable[[str], str]) -> None:
    path = Path(str(served.popen.args[4]))  # type: ignore[index]  # the list that it was started with
    path.write_text(change(path.read_text()))


def reload(served: Process) -> Mapping[str, Any]:
    return control.ask(served.data / "run", "reload", seconds=TIMEOUT)


@pytest.mark.parametrize("more", ["", TWO], ids=["one", "two"])
def test_a_reload_under_load_fails_no_request(tmp_path: Path, upstream: LyingUpstream, more: str) -> None:
    """New workers serve by the new configuration; connections that are kept go on, and a long delivery is finished."""
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(MIB), times=1)
    ended = threading.Event()
    asked = count()

    def keep_asking(served: Process) -> None:
        while not ended.is_set():
            with served.client() as client:
                for _ in range(20):
                    reply = client.get("/v2/")
                    assert reply.status == 200
                    next(asked)
                    if reply.headers["Connection"] == "close":
                        break

    with process(tmp_path / "data", upstream, more=more) as served, ThreadPoolExecutor(8) as pool:
        with served.client() as client:
            answer = client.open(f"/v2/{NAME}/blobs/{LAYER.digest}")
            assert len(answer.read(MIB)) == MIB
            loads = [pool.submit(keep_asking, served) for _ in range(4)]
            try:
                edit(served, lambda text: text.replace("allow_http = false", "allow_http = true"))
                assert reload(served)["ok"] is True
            finally:
                ended.set()
            for each in loads:
                each.result()
            gate.release()
            assert len(answer.read()) == 3 * MIB
        assert next(asked) > 0
        assert ask(served) == 200


def test_a_wrong_configuration_is_refused_and_the_old_one_stays(tmp_path: Path, upstream: LyingUpstream) -> None:
    """By the command and by the signal; what needs a restart says so."""
    with process(tmp_path / "data", upstream) as served:
        worker = served.pid
        edit(served, lambda text: text.replace("[log]", "[log]\nlevel = 1"))
        told = reload(served)
        assert told["ok"] is False
        assert "log.level is not a key" in told["message"]
        os.kill(served.popen.pid, signal.SIGHUP)
        wait_until(lambda: "not reloaded, what was before stays: log.level is not a key" in said(served), "a line")
        added = '[registries."added.demo"]\nurl = "http://127.0.0.1:9"\n'
        edit(served, lambda text: text.replace("[log]\nlevel = 1", f"{added}[log]"))
        assert "added.demo" in reload(served)["message"]  # the CA is for what was configured when it was made
        edit(served, lambda text: text.replace(added, ""))
        edit(served, lambda text: text.replace(f'data_dir = "{served.data}"', f'data_dir = "{tmp_path / "other"}"'))
        assert "needs a restart" in reload(served)["message"]
        assert served.pid == worker
        assert ask(served) == 200


def test_a_reload_binds_and_lets_go(tmp_path: Path, upstream: LyingUpstream) -> None:
    """A listener that is added is there, one that is taken out is not, the others keep their ports."""
    with process(tmp_path / "data", upstream) as served:
        edit(served, lambda text: text.replace("clear = ['127.0.0.1:0']", "clear = []"))
        assert reload(served)["ok"] is True
        assert ask(served) == 200
        clear = served.address("clear")
        wait_until(lambda: is_closed(served, "clear"), f"{clear} is closed")


def is_closed(served: Process, listener: str) -> bool:
    try:
        with served.client(listener) as client:
            client.get("/v2/")
    except OSError:
        return True
    return False


def test_sockets_for_each_worker(tmp_path: Path) -> None:
    """Every worker has one of its own at each address, the admin listener one in all; what is kept is used again."""
    config = load(environ={}, flags={"data_dir": str(tmp_path), **FREE})
    places = bind_places(config, 2, {})
    more = bind_places(config, 3, places)
    try:
        for place, sockets in places.items():
            assert len(sockets) == (1 if place.listener == "admin" else 2)
            assert len({each.getsockname() for each in sockets}) == 1
            assert list(more[place])[: len(sockets)] == list(sockets)
        shares = [share(more, rank, 3) for rank in range(3)]
        own = [{each.fileno() for _, each in mine.sockets} for mine in shares]
        assert not own[0] & own[1] | own[1] & own[2] | own[0] & own[2]
        assert sorted(set(shares[0].addresses())) == sorted(set(shares[2].addresses()))
        # Four with sockets for three share one; two with sockets for three take all of them.
        assert {len(share(more, rank, 4).sockets) for rank in range(4)} == {4}
        taken = {each.fileno() for rank in range(2) for _, each in share(more, rank, 2).sockets}
        assert taken == own[0] | own[1] | own[2]
    finally:
        close_others(more, {})


def test_a_second_service_at_the_same_port_is_refused(tmp_path: Path, upstream: LyingUpstream) -> None:
    """Workers share an address; services do not, whoever's they are."""
    with process(tmp_path / "data", upstream, more=TWO) as served:
        host, port = served.address("tls")
        flags = {"data_dir": str(tmp_path / "other"), **FREE, "listen.tls": [f"{host}:{port}"]}
        with pytest.raises(ConfigError, match=r"listen\.tls: .* cannot be bound: Address already in use"):
            bind_all(load(environ={}, flags=flags))
        with pytest.raises(ConfigError, match="Address already in use"):
            bind_places(load(environ={}, flags=flags), 2, {})


@pytest.mark.parametrize(
    ("quotas", "number"),
    [({}, 64), ({"": "max 100000"}, 64), ({"": "150000 100000"}, 2), ({"": "50000 100000"}, 1),
     ({"": "400000 100000", "..": "100000 100000"}, 1)],
)  # fmt: skip
def test_processors_by_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quotas: Mapping[str, str], number: int
) -> None:
    """The control group's quota counts, and that of every group above it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    group = tmp_path / "fs" / "system.slice" / "unit"
    group.mkdir(parents=True)
    for where, quota in quotas.items():
        (group / where / "cpu.max").write_text(f"{quota}\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/system.slice/unit\n")
    assert processors(own, tmp_path / "fs") == number


def test_lines_of_several_processes_stay_whole() -> None:
    """A pipe takes what is written to it at once as a whole up to PIPE_BUF bytes: no more is, and no line is longer."""
    read, write = os.pipe()
    event = Event(time=0.0, listener="tls", client="192.0.2.1", outcome="ERROR", reason="\N{SNOWMAN}" * 5000)
    with os.fdopen(read, "rb", buffering=0) as reader, os.fdopen(write, "w") as writer:
        access = AccessLine("json", writer)
        for _ in range(20):
            access(event)
        access.flush()
        content = reader.read(1 << 20)
    lines = content.splitlines(keepends=True)
    assert len(lines) == 20
    assert max(map(len, lines)) <= 4096
    assert all(json.loads(line)["outcome"] == "ERROR" for line in lines)
