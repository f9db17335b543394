"""Push on demand where the daemon lies, hangs or is away. What real daemons do is in tests/e2e/test_demand.py."""

import asyncio
import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.index import Index
from mitm_cache.cache.layout import Layout, open_layout
from mitm_cache.errors import StoppingError, StoreError, UpstreamError
from mitm_cache.local import demand
from mitm_cache.local.daemon import MARK, Daemon
from mitm_cache.local.demand import AWAY_SECONDS, LOOK_SECONDS, OnDemand
from mitm_cache.local.manifests import read
from mitm_cache.local.store import Store
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import OCI_MANIFEST
from mitm_cache.oci.operation import Manifest
from mitm_cache.oci.reference import Reference, Repository, Tag
from mitm_cache.registries import LOCAL, Registry
from mitm_cache.tasks import Tasks
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Request
from tests.fakes.daemon import FakeDaemon, Push, image

HOST = "localhost:5000"
NAME = f"{HOST}/team/app:1"
REPOSITORY, TAG = Repository("team/app"), Tag("1")
OLD, NEW = b'{"old": 1}', b'{"new": 1}'
LATER = "2120-01-01T00:00:00Z"
PULLERS = ("application/vnd.oci.image.index.v1+json", OCI_MANIFEST, "*/*")
ELSEWHERE = "192.0.2.7"
PATIENCE = 60.0


def id_of(config: bytes) -> str:
    return f"sha256:{hashlib.sha256(config).hexdigest()}"


def asks(
    reference: Reference = TAG,
    *,
    method: str = "GET",
    accept: tuple[str, ...] = PULLERS,
    client: str = ELSEWHERE,
    agent: str = "containerd/1.6.20",
    mark: str = "",
) -> Request:
    """A client's request for a manifest."""
    pairs = [*(("Accept", one) for one in accept), ("User-Agent", agent), *([(MARK, mark)] if mark else [])]
    return Request(
        listener="mirror",
        client=client,
        method=method,
        registry=Registry(LOCAL, HOST),
        operation=Manifest(REPOSITORY, reference),
        target="/",
        headers=Headers(pairs),
    )


@dataclass(frozen=True, slots=True)
class Scene:
    """One process with push on demand."""

    layout: Layout
    store: Store
    demand: OnDemand

    def keep(self, config: bytes, tag: Tag = TAG) -> Digest:
        """Put an image of nothing but this configuration into the store, as a push would."""
        digest = Digest.of(config)
        path = self.layout.uploads / threading.current_thread().name
        path.write_bytes(config)
        self.store.adopt(REPOSITORY, digest, path, path.stat().st_ino, len(config))
        fields = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(digest), "size": len(config)}
        content = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": fields, "layers": []}).encode()
        self.store.put_manifest(REPOSITORY, tag, read(content, OCI_MANIFEST, tag))
        return Digest.of(content)

    async def pull(self, reference: Reference = TAG, request: Request | None = None) -> None:
        await self.demand.refresh(request or asks(reference), REPOSITORY, reference)

    def config(self) -> bytes | None:
        """What the tag's image is."""
        digest = self.store.tagged(REPOSITORY, TAG)
        if digest is None:
            return None
        content = self.store.content(digest)
        assert content is not None
        return self.store.content(Digest.parse(json.loads(content)["config"]["digest"]))


@pytest.fixture(autouse=True)
def time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that answers at all is not taken for one that is away where the machine is slow."""
    monkeypatch.setattr(demand, "LOOK_SECONDS", 20.0)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "docker.sock") as daemon:
        yield daemon


@asynccontextmanager
async def process(
    folder: Path,
    daemon: FakeDaemon,
    *,
    hosts: tuple[str, ...] = (HOST,),
    patience: float = 60.0,
    silence: int = 60,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Scene]:
    """A process over a data directory; several may run."""
    layout = open_layout(folder / "data")
    index = Index(layout.index)
    store = Store(layout, Blobs(layout.blobs))
    async with Tasks() as tasks:
        demand = OnDemand(
            Daemon(daemon.url, silence=silence),
            hosts=hosts,
            folder=layout.run / "demand",
            store=store,
            index=index,
            start=tasks.start,
            patience=patience,
            clock=clock,
        )
        try:
            yield Scene(layout, store, demand)
        finally:
            demand.close()
            index.close()


@pytest.fixture
async def scene(tmp_path: Path, daemon: FakeDaemon) -> AsyncIterator[Scene]:
    async with process(tmp_path, daemon) as scene:
        daemon.pushing = lambda push: _push(scene, push)
        yield scene


def _push(scene: Scene, push: Push, config: bytes = NEW) -> None:
    push.say({"status": "The push refers to repository"})
    digest = scene.keep(config)
    push.say({"progressDetail": {}, "aux": {"Tag": "1", "Digest": str(digest), "Size": 100}})


async def test_an_image_is_pushed_when_it_is_asked_for(scene: Scene, daemon: FakeDaemon) -> None:
    """Once: what is here then is the daemon's."""
    daemon.images[NAME] = image(id_of(NEW))
    await scene.pull()
    await scene.pull()
    assert scene.config() == NEW
    assert [push.name for push in daemon.pushes] == [NAME]
    assert list((scene.layout.run / "demand").iterdir()) == [], "nothing is left of the lock"


async def test_what_is_built_anew_is_pushed_anew(scene: Scene, daemon: FakeDaemon) -> None:
    """And what somebody else has pushed later stays."""
    scene.keep(OLD)
    daemon.images[NAME] = image(id_of(NEW), tagged=LATER)
    await scene.pull()
    assert scene.config() == NEW
    scene.keep(OLD)
    daemon.images[NAME] = image(id_of(NEW), tagged="2001-01-01T00:00:00Z")
    await scene.pull()
    assert scene.config() == OLD
    assert len(daemon.pushes) == 1


async def test_what_the_daemon_does_not_have(scene: Scene, daemon: FakeDaemon) -> None:
    """Nothing is pushed, and the daemon is asked by the names of this registry."""
    await scene.pull()
    assert scene.config() is None
    assert daemon.looks == [NAME]


async def test_names_of_docker_hub_are_not_pushed(tmp_path: Path, daemon: FakeDaemon) -> None:
    """`local/app` would be Docker Hub's to the daemon, and be pushed there."""
    async with process(tmp_path, daemon, hosts=("local", "registry.lan", "mine", "localhost")) as scene:
        await scene.pull()
    assert daemon.looks == ["registry.lan/team/app:1", "localhost/team/app:1"]


async def test_many_ask_at_once(tmp_path: Path, daemon: FakeDaemon) -> None:
    """One push for all of them, over two processes."""
    begun, go = threading.Event(), threading.Event()
    daemon.images[NAME] = image(id_of(NEW))
    async with process(tmp_path, daemon) as one, process(tmp_path, daemon) as other:

        def slowly(push: Push) -> None:
            begun.set()
            assert go.wait(PATIENCE)
            _push(one, push)

        daemon.pushing = slowly
        async with asyncio.TaskGroup() as pulls:
            for scene in [one, other] * 20:
                pulls.create_task(scene.pull())
            await asyncio.to_thread(begun.wait, PATIENCE)
            pulls.create_task(other.pull())
            go.set()
        assert one.config() == other.config() == NEW
    assert len(daemon.pushes) == 1


async def test_another_process_dies(tmp_path: Path, daemon: FakeDaemon, scene: Scene) -> None:
    """Its lock goes with it, and who has waited pushes itself. (A killed process lets go of `flock`, as this does.)"""
    daemon.images[NAME] = image(id_of(NEW))
    turn = scene.demand._turns.take(REPOSITORY, TAG)
    assert turn is not None
    turn.begin()
    waiting = asyncio.get_running_loop().create_task(scene.pull())
    done, _ = await asyncio.wait([waiting], timeout=0.5)
    assert not done
    assert daemon.pushes == []
    turn.finish(failed=True)  # leaves the file
    await waiting
    assert scene.config() == NEW


async def test_the_daemon_is_away(scene: Scene, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture) -> None:
    """What is stored is served, at once, and it is said once."""
    scene.keep(OLD)
    daemon.stop()
    began = time.monotonic()
    for _ in range(3):
        await scene.pull()
    assert time.monotonic() - began < 3
    assert scene.config() == OLD
    [said] = caplog.messages
    assert said.startswith(f"the daemon at {daemon.url} does not say what it has: ")
    assert "No such file or directory" in said


async def test_the_daemon_comes_back(tmp_path: Path, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture) -> None:
    """It is asked again after a while."""
    now = [1000.0]
    async with process(tmp_path, daemon, clock=lambda: now[0]) as scene:
        daemon.pushing = lambda push: _push(scene, push)
        daemon.images[NAME] = image(id_of(NEW))
        daemon.stop()
        await scene.pull()
        assert scene.config() is None
        daemon.start()
        now[0] += AWAY_SECONDS - 0.1
        await scene.pull()
        assert daemon.looks == [], "not asked yet"
        now[0] += 0.1
        await scene.pull()
        assert scene.config() == NEW
    assert caplog.messages[-1] == f"the daemon at {daemon.url} answers again"


async def test_the_daemon_says_nothing(
    scene: Scene, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs one pull a second, and the next ones nothing."""
    monkeypatch.setattr(demand, "LOOK_SECONDS", LOOK_SECONDS)
    scene.keep(OLD)
    daemon.silent.set()
    began = time.monotonic()
    await scene.pull()
    first = time.monotonic()
    for _ in range(5):
        await scene.pull()
    assert first - began < LOOK_SECONDS + 2
    assert time.monotonic() - first < 4 * LOOK_SECONDS
    [said] = caplog.messages
    assert said.startswith(f"the daemon at {daemon.url} does not answer within 1 s; what is stored is served")


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"Id": None, "Created": "yesterday"},
        {"Id": "sha256:ab", "RepoTags": 7},
        {"Id": "sha256:ab", "Metadata": "x"},
        [],
        b"x" * 100,
        b"",
    ],
)
async def test_the_daemon_says_nonsense(scene: Scene, daemon: FakeDaemon, answer: object) -> None:
    """What answers is no Docker daemon: that is the same as none."""
    scene.keep(OLD)
    daemon.images[NAME] = answer  # type: ignore[assignment]  # as it says
    await scene.pull()
    assert scene.config() == OLD
    assert daemon.pushes == []


async def test_a_push_takes_too_long(tmp_path: Path, daemon: FakeDaemon) -> None:
    """Whoever waits is told to come again; the push goes on, and is the only one."""
    go = threading.Event()
    daemon.images[NAME] = image(id_of(NEW))
    async with process(tmp_path, daemon, patience=1) as scene:

        def slowly(push: Push) -> None:
            push.say({"status": "Preparing"})
            assert go.wait(PATIENCE)
            _push(scene, push)

        daemon.pushing = slowly
        for _ in range(2):
            with pytest.raises(UpstreamError, match="still pushing team/app:1 after 1 s; ask again") as caught:
                await scene.pull()
            assert (caught.value.status, caught.value.code) == (503, "UNAVAILABLE")
            assert caught.value.retry_after == "10"
        go.set()
        async with asyncio.timeout(PATIENCE):
            while scene.config() is None or scene.demand._pushing:
                with contextlib.suppress(UpstreamError):  # it is told to come again, and does
                    await scene.pull()
        await scene.pull()
        assert scene.config() == NEW
    assert len(daemon.pushes) == 1


def _refuse(push: Push) -> None:
    push.say({"status": "Preparing"})
    push.say({"errorDetail": {"message": "denied: not\nyou"}, "error": "denied: not\nyou"})


def _cut(push: Push) -> None:
    push.say({"status": "Preparing"})
    push.cut()


def _shout(push: Push) -> None:
    for _ in range(40):
        push.send(b"x" * (1 << 16))


@pytest.mark.parametrize(
    ("pushing", "words"),
    [
        (_refuse, "the daemon could not push localhost:5000/team/app:1: denied: not you"),
        (lambda push: push.say({"error": "gone"}), "the daemon could not push localhost:5000/team/app:1: gone"),
        (_cut, "could not push localhost:5000/team/app:1: "),
        (lambda push: push.say("hello"), "it sends something else than messages about a push"),
        (_shout, "it sends more than 1048576 bytes in one line"),
        (lambda push: push.send(b"{\n"), "could not push localhost:5000/team/app:1: "),
        # It says that all went well, and nothing has come.
        (lambda push: push.say({"status": "fine"}), "has pushed localhost:5000/team/app:1 to somewhere else"),
    ],
)
async def test_a_push_fails(scene: Scene, daemon: FakeDaemon, pushing: object, words: str) -> None:
    """The client reads the daemon's words, and it is not tried again at once, in another process neither."""
    daemon.images[NAME] = image(id_of(NEW), tagged=LATER)
    daemon.pushing = pushing  # type: ignore[assignment]  # a table of functions of one kind
    for _ in range(3):
        with pytest.raises(UpstreamError) as caught:
            await scene.pull()
        assert words in caught.value.message
        assert caught.value.status == 502
    async with process(scene.layout.root.parent, daemon) as other:
        with pytest.raises(UpstreamError) as caught:
            await other.pull()
        assert words in caught.value.message
    assert len(daemon.pushes) == 1
    daemon.images[NAME] = image(id_of(OLD), tagged=LATER)
    daemon.pushing = lambda push: _push(scene, push, OLD)
    await scene.pull()
    assert scene.config() == OLD, "another image may go better"


async def test_a_push_fails_and_there_is_another(
    scene: Scene, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    """What is stored is served; the log says what went wrong, once."""
    scene.keep(OLD)
    daemon.images[NAME] = image(id_of(NEW), tagged=LATER)
    daemon.pushing = _refuse
    for _ in range(3):
        await scene.pull()
    assert scene.config() == OLD
    assert caplog.messages == ["the daemon could not push localhost:5000/team/app:1: denied: not you"]


async def test_the_disk_takes_nothing(scene: Scene, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing can be pushed for that, what is stored is served; where nothing is stored, the client is told."""
    (scene.layout.run / "demand").write_text("in the way of the folder")
    daemon.images[NAME] = image(id_of(NEW), tagged=LATER)
    with pytest.raises(StoreError, match="cannot be used"):
        await scene.pull()
    scene.keep(OLD)
    await scene.pull()
    assert scene.config() == OLD
    [said] = caplog.messages
    assert "cannot be used: " in said


async def test_a_push_says_nothing_more(tmp_path: Path, daemon: FakeDaemon) -> None:
    """A daemon that hangs in the middle is given up."""
    daemon.images[NAME] = image(id_of(NEW))

    def hang(push: Push) -> None:
        push.say({"status": "Preparing"})
        daemon.ended.wait()

    daemon.pushing = hang
    async with process(tmp_path, daemon, silence=1) as scene:
        with pytest.raises(UpstreamError, match=r"could not push localhost:5000/team/app:1: .*[Tt]imed out"):
            await scene.pull()


@pytest.mark.parametrize("silent", [False, True])
async def test_the_end_does_not_wait_for_a_push(tmp_path: Path, daemon: FakeDaemon, silent: bool) -> None:
    """Whoever waits is told that the service ends."""
    begun = threading.Event()
    daemon.images[NAME] = image(id_of(NEW))

    def hang(push: Push) -> None:
        if not silent:
            push.say({"status": "Preparing"})
        begun.set()
        daemon.ended.wait()

    daemon.pushing = hang
    async with process(tmp_path, daemon, silence=30) as scene:
        waiting = asyncio.get_running_loop().create_task(scene.pull())
        await asyncio.to_thread(begun.wait, PATIENCE)
        began = time.monotonic()
    with pytest.raises(StoppingError):
        await waiting
    assert time.monotonic() - began < 20


async def test_the_daemons_own_requests_do_not_wait(scene: Scene, daemon: FakeDaemon) -> None:
    """Known by the mark of the push, or, in any process, by who asks while it is under way; others wait."""
    daemon.images[NAME] = image(id_of(NEW))
    begun, go = threading.Event(), threading.Event()

    def slowly(push: Push) -> None:
        begun.set()
        assert go.wait(PATIENCE)
        _push(scene, push)

    daemon.pushing = slowly
    async with process(scene.layout.root.parent, daemon) as other:
        first = asyncio.get_running_loop().create_task(scene.pull())
        await asyncio.to_thread(begun.wait, PATIENCE)
        mark = daemon.pushes[0].mark
        marked = asks(mark=mark)
        theirs = [
            marked,
            asks(method="HEAD", accept=(OCI_MANIFEST, "*/*")),
            asks(client="127.0.0.1", agent="docker/20.10.24 go/go1.19.8"),
            asks(client="::ffff:127.0.0.1", agent="containers/5.23.1 (github.com/containers/image)"),
        ]
        for one in (scene, other):
            assert await one.demand.is_own(marked)
            for request in theirs:
                await one.pull(request=request)
            assert not await one.demand.is_own(asks(mark=f"{mark}x"))
            assert not await one.demand.is_own(asks(mark=f"../{mark}"))
            elsewhere = replace(marked, operation=Manifest(Repository("team/other"), TAG))
            assert not await one.demand.is_own(elsewhere)
        strangers = [
            asks(agent="docker/20.10.24"),
            asks(client="127.0.0.1", agent="curl/8"),
            asks(mark=mark.partition(".")[0]),
            asks(method="HEAD"),
        ]
        waiting = [asyncio.get_running_loop().create_task(other.pull(request=each)) for each in strangers]
        done, _ = await asyncio.wait([first, *waiting], timeout=0.5)
        assert not done
        assert scene.config() is None
        go.set()
        await asyncio.gather(first, *waiting)
        assert scene.config() == NEW
        assert not await scene.demand.is_own(marked), "it is over"
    assert len(daemon.pushes) == 1


async def test_the_mark_is_no_secret_of_the_log(
    scene: Scene, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    daemon.images[NAME] = image(id_of(NEW))
    await scene.pull()
    assert len(daemon.pushes[0].mark) > 64
    assert daemon.pushes[0].mark not in caplog.text


async def test_by_digest(scene: Scene, daemon: FakeDaemon) -> None:
    """What is not here any more is pushed by a tag that the daemon has it by, of that repository only."""
    digest = scene.keep(NEW)
    await asyncio.to_thread(scene.store.untag, REPOSITORY, TAG)
    await scene.pull(digest)
    assert daemon.looks == [], "it is here"
    link = scene.store.manifest(REPOSITORY, digest)
    assert link is not None
    await asyncio.to_thread(scene.store.delete, REPOSITORY, link)
    tags = [NAME, "localhost:5000/other:2", "docker.io/team/app:3", "localhost:5000/team/app"]
    daemon.images[NAME] = image(id_of(NEW), tags=tags)
    daemon.images[f"{HOST}/team/app@{digest}"] = daemon.images[NAME]
    await scene.pull(digest)
    assert [push.name for push in daemon.pushes] == [NAME]
    assert scene.store.manifest(REPOSITORY, digest) is not None


async def test_by_a_digest_that_nobody_has(scene: Scene, daemon: FakeDaemon) -> None:
    digest = Digest.of(b"nobody's")
    await scene.pull(digest)
    assert daemon.looks == [f"{HOST}/team/app@{digest}"]


async def test_it_is_built_anew_while_it_is_pushed(scene: Scene, daemon: FakeDaemon) -> None:
    """The one that was asked for last is had."""
    daemon.images[NAME] = image(id_of(OLD), tagged=LATER)

    def rebuild(push: Push) -> None:
        daemon.images[NAME] = image(id_of(NEW), tagged=LATER)
        _push(scene, push, OLD if len(daemon.pushes) == 1 else NEW)

    daemon.pushing = rebuild
    await scene.pull()
    assert scene.config() == NEW
    assert len(daemon.pushes) == 2
