"""The cache under attack, and everybody whom an attack could reach: registries, and a host that nobody must dial."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mitm_cache.demo.access import Access
from mitm_cache.demo.image import KIB, Image, generate
from tests.fakes.registry import LyingUpstream
from tests.hostile.host import Names, Scripted
from tests.serving import Threaded, in_thread

HUB = "docker.io"  # the registry that every listener serves
PRIVATE = "private.demo"  # wants tokens
SCRIPTED = "script.demo"  # sends what a case says
MINE = "mine.demo"  # the cache's own registry
FRIEND = "127.0.0.9"  # who may do more there than others
RULES = f"""
[local]
names = ["{MINE}"]
max_size = "1G"
[[policy]]
registry = "local"
repository = "closed/*"
clients = ["{FRIEND}"]
[[policy]]
registry = "local"
repository = "closed/*"
action = "deny"
[[policy]]
registry = "local"
repository = "theirs/*"
fill = ["{FRIEND}"]
"""
TAG = "/v2/team/app/manifests/1"
USERS = {"a": "a's password", "b": "b's password"}
RECORDS = {
    "inside.example": [["10.0.0.1"]],
    "here.example": [["127.0.0.1"]],
    "metadata.example": [["169.254.169.254"]],
    "all-inside.example": [["127.0.0.1", "10.0.0.1", "169.254.169.254"]],
    "rebinding.example": [["127.0.0.1"], ["192.0.2.7"]],
}


@dataclass(frozen=True)
class Scene:
    """A cache with its upstreams, and a host that nobody must be led to."""

    cache: Threaded
    upstream: LyingUpstream
    private: LyingUpstream
    script: Scripted
    names: Names
    elsewhere: socket.socket
    image: Image
    secret: Image
    caught: list[str] = field(default_factory=list)

    @property
    def target(self) -> str:
        host, port = self.elsewhere.getsockname()
        return f"{host}:{port}"

    def begin(self) -> None:
        """Nothing noted, and everybody honest."""
        for upstream in (self.upstream, self.private):
            upstream.truth()
            upstream.requests.clear()
        self.script.forget()

    def assert_unharmed(self, *, asks: bool) -> None:
        """Nobody was led elsewhere, nothing unproven was kept, and the cache serves on."""
        with pytest.raises(BlockingIOError):
            self.elsewhere.accept()
        if not asks:
            assert [*self.upstream.requests, *self.private.requests, *self.script.asked] == []
        assert "internal error" not in self.cache.log.text
        assert "for no known reason" not in "\n".join(self.caught)
        for upstream in (self.upstream, self.private):
            upstream.truth()
        with self.cache.client("clear") as client:
            reply = client.get(TAG, {"Accept": "*/*"})
        assert (reply.status, reply.body) == (200, self.image.index.body)

    def message(self, body: bytes) -> str:
        """What an OCI error document says."""
        return str(json.loads(body)["errors"][0]["message"])


@contextmanager
def scene(directory: Path) -> Iterator[Scene]:
    """Everybody at work."""
    image, secret = generate(sizes=[3 * KIB], seed="public"), generate(sizes=[5 * KIB], seed="secret")
    access = Access(scheme="bearer", users=dict(USERS), private={"team/secret": {"a"}, "team/other": {"b"}})
    private_directory = directory / "private"
    private_directory.mkdir()
    with (
        LyingUpstream(directory, name=HUB) as upstream,
        LyingUpstream(private_directory, name=PRIVATE, access=access) as private,
        Scripted(upstream.trust, SCRIPTED) as script,
        Names({name: list(answers) for name, answers in RECORDS.items()}) as names,
        socket.create_server(("127.0.0.1", 0)) as elsewhere,
        in_thread(
            directory / "data",
            upstream,
            private,
            more=script.configuration() + RULES,
            environ={
                "MITM_CACHE_UPSTREAM_RESOLVERS": names.server,
                "MITM_CACHE_CLIENTS_CONNECT_PORTS": f"443,{elsewhere.getsockname()[1]}",
                "MITM_CACHE_LISTEN_ADMIN": "127.0.0.1:0",
            },
        ) as cache,
    ):
        elsewhere.setblocking(False)
        upstream.registry.put("team/app", image, "1")
        private.registry.put("team/secret", secret, "1")
        private.registry.put("team/other", generate(sizes=[KIB], seed="other"), "1")
        yield Scene(cache, upstream, private, script, names, elsewhere, image, secret)
