"""`local.max_size` is one limit for all processes: they promise from one account, which is right whoever is killed."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mitm_cache.cache.layout import open_layout
from mitm_cache.cache.owned import removing
from mitm_cache.demo.image import KIB, MIB
from mitm_cache.errors import ClientError
from mitm_cache.local.account import Account
from mitm_cache.local.space import measure
from tests.fakes.registry import LyingUpstream
from tests.faults.pushes import NAME, OCTETS, SECTION
from tests.faults.test_kills import Service, service
from tests.lab.process import wait_until
from tests.local.registry import digest_of
from tests.local.space_pusher import space_of
from tests.serving import ROOT, Client, Process
from tests.test_workers import worker_of

LIMIT = 1_000_000
PROCESSES, KILLS, PUSHES = 3, 9, 20
"""Of a storm: processes at a time, how many are killed, and how many pushes each of them ends before."""

ROOM = 6 * MIB + 512 * KIB
"""For six blobs of those that follow, with what clients that were cut off have left."""
BLOB = MIB
CROWD = 8
"""Clients of each worker."""


@contextmanager
def pusher(data: Path, seed: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.local.space_pusher", str(data), str(seed), str(LIMIT)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_storm(tmp_path: Path) -> None:
    """Processes push and delete at the limit and are killed: at no time is there more than the account says, or
    than the limit; and in the end there is all the room that is not taken, to the byte."""
    layout = open_layout(tmp_path / "data")
    layout.uploads.mkdir()
    account = Account(layout.run / "space")
    met: Counter[str] = Counter()
    with ExitStack() as stack:
        running = [stack.enter_context(pusher(layout.root, seed)) for seed in range(PROCESSES)]
        for seed in range(PROCESSES, PROCESSES + KILLS):
            victim = running.pop(0)
            assert victim.stdout is not None
            for _ in range(PUSHES):
                met[victim.stdout.readline().partition(" ")[0].strip()] += 1
                with removing(layout), account.opened() as sums:
                    held = measure(layout)
                    assert held <= sums.used + sums.promised
                    assert held <= LIMIT
            victim.kill()
            victim.wait()
            running.append(stack.enter_context(pusher(layout.root, seed)))
    assert met.keys() == {"kept", "refused", "given", "deleted"}, met
    space, held = space_of(layout, LIMIT), measure(layout)
    assert held > LIMIT / 2
    share = space.take(LIMIT - held)
    with pytest.raises(ClientError, match="0 are left"):
        space.take(1)
    share.close()
    space.close()
    account.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers with room for six blobs."""
    folder = tmp_path_factory.mktemp("space")
    section = f"{SECTION}max_size = {ROOM}\n"
    with LyingUpstream(folder) as upstream, service(folder / "data", upstream, 2, section) as it:
        yield it


@contextmanager
def crowds(served: Process) -> Iterator[list[list[Client]]]:
    """Clients that are connected to one worker, and as many that are to the other one."""
    with ExitStack() as stack:
        found: dict[int, list[Client]] = {}
        for _ in range(200):
            client = stack.enter_context(served.client("mirror", name=NAME))
            client.get("/v2/")
            found.setdefault(worker_of(client, served), []).append(client)
            if sorted(len(each) >= CROWD for each in found.values()) == [True, True]:
                break
        yield [each[:CROWD] for each in found.values()]


class Push:
    """A blob in one request: its head is sent at once, and its body by `finish`, where there is room for it."""

    def __init__(self, client: Client, seed: str) -> None:
        self._client = client
        self.content = random.Random(seed).randbytes(BLOB)
        self.digest = digest_of(self.content)
        place = client.ask("POST", "/v2/app/blobs/uploads/", {}, b"").headers["Location"]
        client.putrequest("PUT", f"{place}?digest={self.digest}", skip_host=True)
        headers = {"Host": NAME, **OCTETS, "Content-Length": str(BLOB), "Expect": "100-continue"}
        for name, value in headers.items():
            client.putheader(name, value)
        client.endheaders()
        told = client.sock.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL)
        self.promised = told == b"HTTP/1.1 100"

    def begin(self) -> None:
        """Send a little of it."""
        self._client.sock.sendall(self.content[: 4 * KIB])

    def finish(self) -> int:
        """The status, once all of it was sent."""
        self._client.sock.sendall(self.content)
        return self.end()[0]

    def end(self) -> tuple[int, bytes]:
        """Status and body of the answer; who has not sent the body, which may still be waited for, begins anew."""
        answer = self._client.getresponse()
        status, body = answer.status, answer.read()
        if not self.promised:
            self._client.close()
        return status, body


def push_all(clients: list[Client], name: str) -> tuple[list[Push], list[Push]]:
    """The heads of all, at once: whose body is waited for, and who was refused."""
    with ThreadPoolExecutor(len(clients)) as pool:
        pushes = list(pool.map(lambda each: Push(each[1], f"{name} {each[0]}"), enumerate(clients)))
    return [push for push in pushes if push.promised], [push for push in pushes if not push.promised]


def has_ended(pid: int) -> bool:
    """Whether a process holds nothing any more: its first thread may end before others."""
    try:
        ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        return ended and len(os.listdir(f"/proc/{pid}/task")) == 1
    except (FileNotFoundError, ProcessLookupError):
        return True


def promised_by(account: Account) -> int:
    with account.opened() as sums:
        return sums.promised


def test_two_workers_have_one_limit(running: Service) -> None:
    """Of sixteen pushes at two workers six have room, and exactly these; a killed worker's come back."""
    served = running.served
    with crowds(served) as (mine, others):
        promised, refused = push_all([client for pair in zip(mine, others, strict=True) for client in pair], "crowd")
        assert (len(promised), len(refused)) == (6, 10)
        for push in refused:
            status, body = push.end()
            assert (status, json.loads(body)["errors"][0]["code"]) == (403, "DENIED")
            assert b"local.max_size is 6,815,744 bytes" in body
    # All of them hang up: what they were promised is there again, soon.
    account = Account(open_layout(served.data).run / "space")
    wait_until(lambda: promised_by(account) == 0, "the end of all promises")
    account.close()
    with crowds(served) as (mine, others):
        victim = worker_of(mine[0], served)
        assert Push(mine[0], "one").finish() == 201
        doomed, _ = push_all(mine[1:5], "doomed")
        for push in doomed:
            push.begin()
        kept, refused = push_all(others[:3], "kept")
        assert (len(doomed), len(kept), len(refused)) == (4, 1, 2)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: has_ended(victim), "the end of a worker")
        assert all(push.end()[0] == 403 for push in refused)
        assert kept[0].finish() == 201
        more, refused = push_all(others[3:], "more")
        assert (len(more), len(refused)) == (4, 1)
        assert [push.finish() for push in more] == [201] * 4
    held = measure(open_layout(served.data))
    assert 6 * MIB <= held <= ROOM
