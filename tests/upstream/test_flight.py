"""One download, many readers, and everything an upstream can do to it, by real clients of the real product."""

import hashlib
import http.client
import os
import select
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Head
from mitm_cache.cache.spool import Spool, Writing
from mitm_cache.demo.access import Access
from mitm_cache.demo.content import Memory
from mitm_cache.demo.image import KIB, MIB, Image
from mitm_cache.oci.digest import Digest
from mitm_cache.upstream import curl, flight
from tests.fakes import faults
from tests.fakes.big import Pattern, big_image
from tests.fakes.faults import Fault
from tests.fakes.registry import LyingUpstream, Witness
from tests.lab.process import wait_until
from tests.serving import Process, Reply, Threaded, process

NAME = "team/app"
SIZE = 1 * MIB + 12345
HELD = 600 * KIB
ANN, BOB = "Basic YW5uOnNlY3JldA==", "Basic Ym9iOmhpZGRlbg=="
USERS = {"ann": "secret", "bob": "hidden"}


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process waits for the reason of a failure here."""
    monkeypatch.setattr(flight, "NOTE_LINGERS", 0.1)


@pytest.fixture(scope="session")
def image() -> Image:
    return big_image(SIZE)


@pytest.fixture
def crowd() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as crowd:
        yield crowd


LAYER = Pattern(SIZE, "big 0")
DIGEST = LAYER.digest
DATA = b"".join(LAYER.chunks(0, SIZE))
BLOB = f"/v2/{NAME}/blobs/{DIGEST}"


def get(cache: Threaded | Process, target: str = BLOB, headers: Mapping[str, str] | None = None) -> Reply:
    with cache.client() as client:
        return client.get(target, headers)


def all_aboard(cache: Threaded | Process, clients: int, *, writing: bool = True) -> None:
    """Block until so many clients take part in the one download: each has its own descriptor of the part file, the
    flight has one more, and the writer its own."""
    part = str(cache.data / "spool" / f"{DIGEST.replace(':', '-')}.part")
    folder = Path(f"/proc/{cache.pid if isinstance(cache, Process) else 'self'}/fd")

    def descriptors() -> int:
        return sum(path == part for path in map(_target, folder.iterdir()))

    wait_until(lambda: descriptors() >= clients + 1 + writing, f"{clients} clients", tick=0.01)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def objects(upstream: LyingUpstream) -> list[str]:
    """The ranges of the downloads from the storage host so far."""
    return [each.range for each in upstream.requests.select(kind="object", method="GET")]


def nothing_is_left(cache: Threaded | Process) -> None:
    """No byte of the blob is kept, nor anything in the spool once the reason has been told to other processes."""
    wait_until(lambda: not cache.spool(), "an empty spool", seconds=10, tick=0.02)
    assert DIGEST not in cache.blobs()


class Raw:
    """A request on the clear listener, whose answer can be seen to pause."""

    def __init__(self, cache: Threaded, headers: str = "", target: str = BLOB) -> None:
        self.sock = socket.create_connection(cache.address("clear"), 30)
        self.sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {cache.registry}\r\n{headers}\r\n".encode())
        self.file = self.sock.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        self.headers = http.client.parse_headers(self.file)
        self.left = int(self.headers["Content-Length"])

    def read(self, number: int) -> bytes:
        """So many bytes of the body; fewer where it ends before, or is cut by a clean end."""
        try:
            read = self.file.read(min(number, self.left))
        except ConnectionResetError:
            read = b""
        self.left -= len(read)
        return read

    def is_silent(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes for a while."""
        # What the file has read ahead of us would be seen by neither select nor a socket read.
        self.sock.setblocking(False)
        try:
            return not self.file.peek() and not select.select([self.sock], [], [], seconds)[0]
        finally:
            self.sock.settimeout(30)

    def close(self) -> None:
        self.file.close()
        self.sock.close()


# One download for everybody.


def test_one_download_for_many_clients(cache: Threaded, upstream: LyingUpstream, crowd: ThreadPoolExecutor) -> None:
    """Sixteen clients at once: one GET upstream, sixteen right answers; one of them led, nobody waited in vain."""
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(HELD))
    replies = [crowd.submit(get, cache) for _ in range(16)]
    all_aboard(cache, 16)
    gate.release()
    assert all(reply.result().body == DATA for reply in replies)
    assert objects(upstream) == [""]
    outcomes = sorted(reply.result().outcome for reply in replies)
    assert outcomes == ["JOINED"] * 15 + ["MISS"]
    assert {reply.result().headers["Docker-Content-Digest"] for reply in replies} == {DIGEST}
    assert get(cache).outcome == "HIT"
    assert cache.spool() == set()


def test_result_is_handed_to_all(
    cache: Threaded, upstream: LyingUpstream, crowd: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure is everybody's answer: the second waiter does not read it as success, and nobody asks again."""
    monkeypatch.setattr(flight, "NOTE_LINGERS", 3.0)  # for who is aboard, and is still asked whether it may be
    gate = upstream.gate()
    upstream.lie("object", gate.hang())
    upstream.lie("object", faults.refuse(429, "TOOMANYREQUESTS", {"Retry-After": "7"}))
    replies = [crowd.submit(get, cache) for _ in range(6)]
    all_aboard(cache, 6)
    gate.release()
    for reply in [each.result() for each in replies]:
        assert (reply.status, reply.code, reply.headers["Retry-After"]) == (429, "TOOMANYREQUESTS", "7")
    assert objects(upstream) == [""]
    nothing_is_left(cache)


def test_leader_that_leaves_stops_nothing(cache: Threaded, upstream: LyingUpstream, crowd: ThreadPoolExecutor) -> None:
    """The client whose request started the download hangs up midway: the one that joined gets all of it."""
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(HELD))
    leader = Raw(cache)
    assert leader.read(1000) == DATA[:1000]
    follower = crowd.submit(get, cache)
    all_aboard(cache, 2)
    leader.close()
    gate.release()
    assert follower.result().body == DATA
    assert objects(upstream) == [""]


def test_download_outlives_its_only_client(cache: Threaded, upstream: LyingUpstream) -> None:
    """Nobody waits any more, and the blob is kept all the same: the client will come back for it."""
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(HELD))
    with closing(Raw(cache)) as leader:
        assert leader.read(1000) == DATA[:1000]
    gate.release()
    wait_until(lambda: DIGEST in cache.blobs(), "the blob", seconds=10, tick=0.02)
    assert get(cache).outcome == "HIT"
    assert objects(upstream) == [""]


def test_no_lock_is_held_while_streaming(cache: Threaded, upstream: LyingUpstream) -> None:
    """A client that does not read holds up neither the download nor another client of the same blob."""
    big = big_image(24 * MIB)
    upstream.registry.put("team/big", big, "1")
    digest = Pattern(24 * MIB, "big 0").digest
    with closing(Raw(cache, target=f"/v2/team/big/blobs/{digest}")) as stuck:
        assert stuck.read(1000)
        reply = get(cache, f"/v2/team/big/blobs/{digest}")
        assert f"sha256:{hashlib.sha256(reply.body).hexdigest()}" == digest
        assert digest in cache.blobs()
        assert cache.log.count(outcome="MISS") == 0  # the first one still does not read


def test_follower_never_sees_an_unverified_end(
    cache: Threaded, upstream: LyingUpstream, crowd: ThreadPoolExecutor
) -> None:
    """The content is wrong: whoever reads along is cut before its last byte, the leader and the others alike."""
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(HELD), times=1)
    upstream.lie("object", faults.wrong_bytes(), times=1)
    readers = [Raw(cache), Raw(cache), Raw(cache, "Range: bytes=100-199\r\n")]
    # All but the last byte of what has come, and of each range.
    assert [len(reader.read(size)) for reader, size in zip(readers, (HELD, HELD, 99), strict=True)] == [HELD, HELD, 99]
    gate.release()
    assert len(readers[0].read(SIZE)) < SIZE - HELD
    assert len(readers[1].read(SIZE)) < SIZE - HELD
    assert readers[2].read(1) == b""
    for reader in readers:
        reader.close()
    nothing_is_left(cache)
    assert get(cache).body == DATA


def test_no_key_without_access_scope(cache: Threaded, upstream: LyingUpstream, crowd: ThreadPoolExecutor) -> None:
    """A download is joined by its digest, and only by who may have it: a stranger gets upstream's no, and no byte."""
    upstream.registry.access = Access(scheme="basic", users=USERS, private={NAME: {"ann"}})
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(HELD))
    with closing(Raw(cache, f"Authorization: {ANN}\r\n")) as leader:
        assert leader.read(1000) == DATA[:1000]
        for stranger in ({}, {"Authorization": BOB}):
            reply = get(cache, headers=stranger)
            assert (reply.status, reply.outcome, reply.code) == (401, "REFUSED", "UNAUTHORIZED")
            assert reply.headers["WWW-Authenticate"] == 'Basic realm="demo"'
        gate.release()
        assert leader.read(SIZE) == DATA[1000:]


# As it arrives.


def test_late_joiner_gets_at_once_what_is_there(cache: Threaded, upstream: LyingUpstream) -> None:
    """The upstream pauses: who comes now, for all or for a range within it, gets every byte there is, right away."""
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(HELD))
    with closing(Raw(cache)) as leader:
        assert leader.read(HELD) == DATA[:HELD]
        gate.wait_held()
        begun = time.monotonic()
        with closing(Raw(cache)) as late, closing(Raw(cache, "Range: bytes=1000-300999\r\n")) as within:
            assert (late.status, within.status) == (200, 206)
            assert late.read(HELD) == DATA[:HELD]
            assert within.read(299999) == DATA[1000:300999]
            assert time.monotonic() - begun < 20  # nothing waits for the gate, which holds for a minute
            assert late.is_silent()
            gate.release()
            assert late.read(SIZE) == DATA[HELD:]
            assert within.read(2) == DATA[300999:301000]
        assert leader.read(SIZE) == DATA[HELD:]
    assert objects(upstream) == [""]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("", 0, SIZE), ("bytes=0-0", 0, 1), ("bytes=5-104", 5, 105), (f"bytes={SIZE - 200}-{SIZE - 101}", -200, -100)],
    ids=["all", "one byte", "early", "late"],
)
def test_last_byte_of_each_answer_is_held_back(
    cache: Threaded, upstream: LyingUpstream, asked: str, start: int, stop: int
) -> None:
    """All bytes but one of the content are here: the last byte of an answer waits for the proof, of a range too."""
    gate = upstream.gate()
    upstream.lie("object", gate.hold_after(SIZE - 1))
    with closing(Raw(cache)) as leader:
        assert leader.read(SIZE - 1) == DATA[:-1]
        with closing(Raw(cache, f"Range: {asked}\r\n" if asked else "")) as reader:
            expected = DATA[start:stop]
            assert reader.headers["Content-Length"] == str(len(expected))
            assert reader.read(len(expected) - 1) == expected[:-1]
            assert reader.is_silent()
            gate.release()
            assert reader.read(1) == expected[-1:]


# What upstream can do wrong.


@pytest.mark.parametrize(
    "fault",
    [
        faults.wrong_bytes(),
        faults.body(b"other content"),
        faults.body(b"x"),
        faults.body(b""),
        faults.header("Content-Length", str(SIZE + 10)),
        faults.header("Content-Length", "7"),
    ],
    ids=[
        "wrong",
        "other",
        "one byte",
        "no byte",
        "announced longer",
        "announced shorter",
    ],
)
def test_bad_content_is_cut_and_forgotten(cache: Threaded, upstream: LyingUpstream, fault: Fault) -> None:
    """An answer whose head is out ends before its promised end, or it is an error at once; the next one is right."""
    upstream.lie("object", fault, times=1)
    with closing(Raw(cache)) as reader:
        promised = reader.left
        body = reader.read(SIZE + 100)
    assert len(body) < promised if reader.status == 200 else (reader.status == 502 and b'"errors"' in body)
    [line] = cache.log.wait(1)
    assert (line["outcome"], line["digest"] or line["reference"]) == ("ERROR", DIGEST)
    # At once: the failed generation's file and its note may still be about.
    assert get(cache).body == DATA
    wait_until(lambda: not cache.spool(), "an empty spool", seconds=10, tick=0.02)


def test_bad_content_leaves_nothing(cache: Threaded, upstream: LyingUpstream) -> None:
    """Neither a blob nor a file in the spool stays of what was wrong."""
    upstream.lie("object", faults.wrong_bytes())
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        get(cache)
    nothing_is_left(cache)


def test_what_comes_after_the_end_is_left_out(cache: Threaded, upstream: LyingUpstream) -> None:
    """More bytes than announced: they are no part of this answer, nor of the next one on that connection."""
    upstream.registry.blobs = "direct"
    upstream.lie("blob", faults.longer(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"), method="GET")
    assert get(cache).body == DATA
    with cache.client() as client:
        assert client.head(f"/v2/{NAME}/manifests/1", {"Accept": "*/*"}).headers["Docker-Content-Digest"]


@pytest.mark.parametrize(
    ("where", "fault", "status", "code"),
    [
        ("object", faults.without("Content-Length"), 502, "UNKNOWN"),
        ("object", faults.refuse(500), 502, "UNKNOWN"),
        ("object", faults.refuse(503), 502, "UNKNOWN"),
        ("blob", faults.refuse(429, "TOOMANYREQUESTS", {"Retry-After": "7"}), 429, "TOOMANYREQUESTS"),
        ("blob", faults.redirect_loop(), 502, "UNKNOWN"),
        ("blob", faults.redirect_chain(10), 502, "UNKNOWN"),
        ("blob", faults.redirect_to("ftp://127.0.0.1/x"), 502, "UNKNOWN"),
        ("blob", faults.redirect_to("https://127.0.0.1:99999/x"), 502, "UNKNOWN"),
        ("blob", faults.without("Location"), 502, "UNKNOWN"),
    ],
    ids=["no length", "500", "503", "429", "loop", "11 hops", "ftp", "bad port", "nowhere"],
)
def test_errors_are_told_as_errors(
    cache: Threaded, upstream: LyingUpstream, where: str, fault: Fault, status: int, code: str
) -> None:
    """Before the first byte an error is an OCI document with a status that tells a client what to do."""
    upstream.lie(where, fault, method="GET")
    reply = get(cache)
    assert (reply.status, reply.code, reply.outcome) == (status, code, "ERROR")
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["Retry-After"] == ("7" if status == 429 else None)
    nothing_is_left(cache)
    upstream.truth()
    assert get(cache).body == DATA


def test_ten_redirects_are_followed(cache: Threaded, upstream: LyingUpstream) -> None:
    """Nine by relative locations and one to the storage host."""
    upstream.lie("blob", faults.redirect_chain(9), method="GET")
    assert get(cache).body == DATA


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusals_are_passed_back(cache: Threaded, upstream: LyingUpstream, status: int) -> None:
    """The registry's own words and headers, asked for once, and nothing in the spool."""
    upstream.lie("blob", faults.refuse(status, "DENIED", {"X-Why": "because"}), method="GET")
    reply = get(cache)
    assert (reply.status, reply.code, reply.headers["X-Why"]) == (status, "DENIED", "because")
    assert reply.outcome == "REFUSED"
    assert upstream.requests.count(kind="blob", method="GET") == 1
    nothing_is_left(cache)


def test_a_refusal_is_one_clients_own(cache: Threaded, upstream: LyingUpstream, crowd: ThreadPoolExecutor) -> None:
    """The writer's client is refused: those who wait with it are not, they ask again with their own credential."""
    upstream.registry.access = Access(scheme="basic", users=USERS, private={NAME: {"ann"}})
    gate = upstream.gate()
    upstream.lie("blob", gate.hang(), method="GET", times=1)
    refused = crowd.submit(get, cache, BLOB, {"Authorization": BOB})
    gate.wait_held()
    allowed = [crowd.submit(get, cache, BLOB, {"Authorization": ANN}) for _ in range(4)]
    all_aboard(cache, 5)
    gate.release()
    assert refused.result().status == 401
    assert [reply.result().body == DATA for reply in allowed] == [True] * 4
    assert [each.status for each in upstream.requests.select(kind="blob", method="GET")] == [401, 307]
    assert objects(upstream) == [""]


def test_an_upstream_that_is_down(cache: Threaded, upstream: LyingUpstream) -> None:
    """Connections refused: 502 that names the host, and later the content."""
    upstream.stop()
    reply = get(cache)
    assert (reply.status, reply.outcome) == (502, "ERROR")
    assert "registry.demo" in reply.message
    upstream.start()
    wait_until(lambda: get(cache).body == DATA, "upstream's being asked again")


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curl, "STALL_SECONDS", 1)


def test_an_answer_that_never_begins(impatience: None, cache: Threaded, upstream: LyingUpstream) -> None:
    """Not even a head: 504."""
    upstream.lie("object", upstream.gate().hang())
    reply = get(cache)
    assert (reply.status, reply.outcome) == (504, "ERROR")
    nothing_is_left(cache)


def test_a_slow_body_is_waited_for(impatience: None, cache: Threaded, upstream: LyingUpstream) -> None:
    """Slowness is no error: what takes longer than the patience with silence comes whole."""
    upstream.storage.rate = SIZE / 2
    begun = time.monotonic()
    assert get(cache).body == DATA
    assert time.monotonic() - begun > 1.5


# Where requests may lead.


def test_credentials_stay_with_their_registry(cache: Threaded, upstream: LyingUpstream) -> None:
    """A redirect to another host, and to another port of the same one, brings no Authorization along."""
    upstream.registry.access = Access(scheme="basic", users=USERS, private={NAME: {"ann"}})
    with Witness(tls=upstream.trust.certify("127.0.0.1"), content=Memory(DATA)) as witness:
        upstream.lie("blob", faults.redirect_to(witness.url("/b", name="127.0.0.1")), method="GET")
        reply = get(cache, headers={"Authorization": ANN, "Cookie": "session=1"})
        assert reply.body == DATA
        assert [each.status for each in witness.requests] == [200]
        assert not {"authorization", "cookie"} & set(witness.requests.select()[0].headers)
    assert {each.authorization for each in upstream.requests.select(kind="blob", method="GET")} == {"Basic"}


def test_http_is_not_followed(cache: Threaded, upstream: LyingUpstream) -> None:
    """From https to http: refused with the key that would allow it, and nothing is asked there."""
    with Witness(tls=None, content=Memory(DATA)) as witness:
        upstream.lie("blob", faults.redirect_to(witness.url("/b", name="127.0.0.1")), method="GET")
        reply = get(cache)
        assert reply.status == 502
        assert "upstream.allow_http" in reply.message
        assert len(witness.requests) == 0
    nothing_is_left(cache)


def test_tokens_are_not_asked_of_strangers(cache: Threaded, upstream: LyingUpstream) -> None:
    """A challenge names a host that is not the registry's: it hears nothing, and the client is told the challenge."""
    with Witness(tls=upstream.trust.certify("127.0.0.1")) as witness:
        realm = witness.url("/token", name="127.0.0.1")
        upstream.lie("blob", faults.challenge(realm))
        reply = get(cache)
        assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, f'Bearer realm="{realm}",service="demo"')
        assert len(witness.requests) == 0
    nothing_is_left(cache)


def test_a_certificate_of_somebody_else(cache: Threaded, upstream: LyingUpstream, tmp_path: Path) -> None:
    """The storage host's certificate is signed by nobody we trust: 502, and no byte of it."""
    (tmp_path / "other").mkdir()
    with LyingUpstream(tmp_path / "other") as other, Witness(tls=other.trust.certify("127.0.0.1")) as witness:
        upstream.lie("blob", faults.redirect_to(witness.url("/b", name="127.0.0.1")), method="GET")
        reply = get(cache)
        assert reply.status == 502
        assert "ca_file" in reply.message


# Carrying on what another writer has left.


def left_behind(cache: Threaded, content: bytes, size: int = SIZE) -> None:
    """What a writer leaves in the spool that was killed after `content`."""
    spool = Spool(cache.data / "spool", Blobs(cache.data / "blobs"))
    role = spool.join(Digest.parse(DIGEST))
    assert isinstance(role, Writing)
    spool.write_note(role.part, Head(size, "application/octet-stream"))
    if content:
        role.part.append(content)
    role.part.close()


def test_what_is_there_is_carried_on(cache: Threaded, upstream: LyingUpstream) -> None:
    """Only the rest is fetched, by Range."""
    left_behind(cache, DATA[:HELD])
    assert get(cache).body == DATA
    assert objects(upstream) == [f"bytes={HELD}-"]
    assert cache.spool() == set()


def test_all_there_but_the_proof(cache: Threaded, upstream: LyingUpstream) -> None:
    """The writer died before it could prove what it had: nothing is fetched at all."""
    left_behind(cache, DATA)
    assert get(cache).body == DATA
    assert objects(upstream) == []


@pytest.mark.parametrize(
    "fault",
    [
        faults.ignore_range(),
        faults.header("Content-Range", f"bytes {HELD - 1}-{SIZE - 2}/{SIZE}", status=206),
        faults.header("Content-Range", f"bytes {HELD}-{SIZE}/{SIZE + 1}", status=206),
        faults.header("Content-Range", "bytes */*", status=206),
        faults.header("Content-Range", "nonsense", status=206),
    ],
    ids=["200 instead of 206", "another start", "another size", "unknown", "nonsense"],
)
def test_a_wrong_continuation_is_begun_anew(cache: Threaded, upstream: LyingUpstream, fault: Fault) -> None:
    """Who does not carry on where it was asked to spoils the generation; the next one is fetched whole."""
    gate = upstream.gate()
    upstream.lie("object", gate.hang())
    upstream.lie("object", fault)
    left_behind(cache, DATA[:HELD])
    with closing(Raw(cache)) as reader:
        assert reader.read(HELD) == DATA[:HELD]
        gate.release()
        assert reader.read(SIZE) == b""  # it has had the beginning, so all that is left is to cut it
    assert get(cache).body == DATA
    assert objects(upstream) == [f"bytes={HELD}-", ""]
    wait_until(lambda: not cache.spool(), "an empty spool", seconds=10, tick=0.02)


@pytest.mark.parametrize("size", [SIZE, SIZE + 7, HELD - 1], ids=["same size", "longer", "shorter than the bytes"])
def test_a_rotten_beginning_is_thrown_away(cache: Threaded, upstream: LyingUpstream, size: int) -> None:
    """What a power failure has left is proven with the rest; where it is wrong nothing of it is ever used."""
    left_behind(cache, b"\0" * HELD, size)
    with cache.client() as client:
        try:
            response = client.open(BLOB)
            assert response.status != 200 or response.read() == DATA
        except (http.client.IncompleteRead, ConnectionError):
            pass
    assert get(cache).body == DATA
    wait_until(lambda: not cache.spool(), "an empty spool", seconds=10, tick=0.02)


def test_a_note_without_a_byte_is_nobodys_permission(cache: Threaded, upstream: LyingUpstream) -> None:
    """A writer died before its first byte, its size was known: the next client is asked for like any first one."""
    upstream.registry.access = Access(scheme="basic", users=USERS, private={NAME: {"ann"}})
    left_behind(cache, b"")
    reply = get(cache, headers={"Authorization": BOB})
    assert (reply.status, reply.outcome) == (401, "REFUSED")
    assert get(cache, headers={"Authorization": ANN}).body == DATA
    assert get(cache, headers={"Authorization": BOB}).status == 401


# Other contents.


def by_sha512(upstream: LyingUpstream) -> str:
    digest = f"sha512:{hashlib.sha512(DATA).hexdigest()}"
    upstream.registry.repositories[NAME].blobs[digest] = LAYER
    return digest


def test_sha512(cache: Threaded, upstream: LyingUpstream) -> None:
    """The other registered algorithm is proven and kept in the same way."""
    digest = by_sha512(upstream)
    target = f"/v2/{NAME}/blobs/{digest}"
    upstream.lie("object", faults.wrong_bytes(), times=1)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        get(cache, target)
    assert cache.blobs() == set()
    assert get(cache, target).body == DATA
    assert cache.blobs() == {digest}
    assert get(cache, target).outcome == "HIT"


def test_schema_1_is_passed_through(cache: Threaded, upstream: LyingUpstream) -> None:
    """The old signed manifests are given as they come, each time anew, and never kept."""
    upstream.lie("tag", faults.schema_1())
    for _ in range(2):
        reply = get(cache, f"/v2/{NAME}/manifests/1", {"Accept": "*/*"})
        assert (reply.status, reply.outcome) == (200, "RELAY")
        assert reply.headers["Content-Type"] == "application/vnd.docker.distribution.manifest.v1+prettyjws"
        assert b'"schemaVersion": 1' in reply.body
    assert cache.blobs() == set()
    assert upstream.requests.count(kind="tag", method="GET") == 2


def test_schema_1_by_digest(cache: Threaded, upstream: LyingUpstream, image: Image) -> None:
    """Their digest is not of the bytes that come, so nothing can be proven: passed through as well."""
    upstream.lie("manifest", faults.schema_1())
    for _ in range(2):
        reply = get(cache, f"/v2/{NAME}/manifests/{image.index.digest}", {"Accept": "*/*"})
        assert (reply.status, reply.outcome) == (200, "RELAY")
        assert b'"schemaVersion": 1' in reply.body
    assert cache.blobs() == set()


@pytest.mark.parametrize("which", ["index", "manifest"])
def test_a_manifest_without_a_length(cache: Threaded, upstream: LyingUpstream, image: Image, which: str) -> None:
    """A registry that begins to send before it knows how much it will be: a manifest is small, and is waited for."""
    manifest = image.index if which == "index" else next(iter(image.platforms.values()))
    upstream.lie("manifest", faults.without("Content-Length"), method="GET")
    target = f"/v2/{NAME}/manifests/{manifest.digest}"
    for outcome in ("MISS", "HIT"):
        reply = get(cache, target, {"Accept": "*/*"})
        assert (reply.status, reply.body, reply.outcome) == (200, manifest.body, outcome)
        assert reply.headers["Content-Type"] == manifest.media_type
    assert cache.spool() == set()


@pytest.mark.parametrize(
    "fault", [faults.wrong_bytes(), faults.cut_after(10), faults.body(b"")], ids=["wrong", "short", "empty"]
)
def test_a_wrong_manifest_without_a_length(
    cache: Threaded, upstream: LyingUpstream, image: Image, fault: Fault
) -> None:
    """Its digest tells, and nothing of it is kept."""
    upstream.lie("manifest", faults.without("Content-Length"), method="GET")
    upstream.lie("manifest", fault, method="GET")
    try:
        status = get(cache, f"/v2/{NAME}/manifests/{image.index.digest}", {"Accept": "*/*"}).status
    except (http.client.IncompleteRead, ConnectionError):
        status = 0  # it was cut
    assert status != 200
    nothing_is_left(cache)
    upstream.truth()
    assert get(cache, f"/v2/{NAME}/manifests/{image.index.digest}", {"Accept": "*/*"}).body == image.index.body


def test_a_manifest_without_its_digest(cache: Threaded, upstream: LyingUpstream, image: Image) -> None:
    """A registry that leaves out Docker-Content-Digest: fetched by tag and hashed, then had by digest from here."""
    upstream.lie("tag", faults.without("Docker-Content-Digest"))
    for method in ("HEAD", "GET"):
        with cache.client() as client:
            reply = client.ask(method, f"/v2/{NAME}/manifests/1", {"Accept": "*/*"})
        assert (reply.status, reply.headers["Docker-Content-Digest"]) == (200, image.index.digest)
        assert reply.body == (image.index.body if method == "GET" else b"")
    kept = get(cache, f"/v2/{NAME}/manifests/{image.index.digest}", {"Accept": "*/*"})
    assert (kept.body, kept.outcome) == (image.index.body, "HIT")
    assert kept.headers["Content-Type"] == image.index.media_type
    assert cache.spool() == set()


@pytest.mark.parametrize(
    "fault", [faults.wrong_bytes(), faults.body(b"{}"), faults.body(b"x" * (5 * MIB))], ids=["wrong", "other", "huge"]
)
def test_a_wrong_manifest(cache: Threaded, upstream: LyingUpstream, image: Image, fault: Fault) -> None:
    """What is not the manifest of its digest, or is larger than any, ends in an error or a cut and is not kept."""
    upstream.lie("manifest", fault, method="GET", times=1)
    target = f"/v2/{NAME}/manifests/{image.index.digest}"
    with cache.client() as client:
        try:
            assert client.get(target, {"Accept": "*/*"}).status == 502
        except (http.client.IncompleteRead, ConnectionError):
            pass
    assert cache.blobs() == set()
    assert get(cache, target, {"Accept": "*/*"}).body == image.index.body


# Several processes.


def test_outcomes_between_processes(tmp_path: Path, upstream: LyingUpstream, crowd: ThreadPoolExecutor) -> None:
    """A failure is shared with its reason by readers of another process; a refusal is not."""
    upstream.registry.access = Access(scheme="basic", users=USERS, private={NAME: {"ann"}})
    ann, bob = {"Authorization": ANN}, {"Authorization": BOB}
    with process(tmp_path / "data", upstream) as one, process(tmp_path / "data", upstream) as other:
        busy, gate = upstream.gate(), upstream.gate()
        upstream.lie("object", busy.hang(), times=1)
        upstream.lie("object", faults.refuse(429, "TOOMANYREQUESTS", {"Retry-After": "7"}), times=1)
        leader = crowd.submit(get, one, BLOB, ann)
        busy.wait_held()
        follower = crowd.submit(get, other, BLOB, ann)
        all_aboard(other, 1, writing=False)
        busy.release()
        for reply in (leader.result(), follower.result()):
            assert (reply.status, reply.code, reply.headers["Retry-After"]) == (429, "TOOMANYREQUESTS", "7")
        assert objects(upstream) == [""]
        nothing_is_left(one)

        upstream.lie("blob", gate.hang(), method="GET", times=1)
        refused = crowd.submit(get, one, BLOB, bob)
        gate.wait_held()
        allowed = crowd.submit(get, other, BLOB, ann)
        all_aboard(other, 1, writing=False)
        gate.release()
        assert refused.result().status == 401
        assert allowed.result().body == DATA
        wait_until(lambda: not one.spool(), "an empty spool", seconds=10, tick=0.02)
