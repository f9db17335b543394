"""The demo's registry and storage host, which can be told to lie, and a host that witnesses what it is sent."""

import ssl
import threading
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import override

from mitm_cache.demo.access import Access
from mitm_cache.demo.content import Content, Memory
from mitm_cache.demo.host import Host
from mitm_cache.demo.ledger import Ledger
from mitm_cache.demo.message import Answer, Incoming, Proceed, ranged
from mitm_cache.demo.run import configuration
from mitm_cache.demo.upstream import NAME, STORAGE_NAME, Upstream
from tests.fakes.faults import Fault
from tests.fakes.gate import Gate
from tests.fakes.trust import Trust


@dataclass(slots=True, eq=False)
class Lie:
    """A fault and where it holds; `left` counts down to the truth, `told` says how often it was told."""

    where: str
    fault: Fault
    method: str | None = None
    left: int | None = None
    told: int = 0

    def covers(self, incoming: Incoming) -> bool:
        place = fnmatchcase(incoming.path, self.where) if self.where.startswith("/") else incoming.kind == self.where
        return place and self.method in (None, incoming.method)


class LyingUpstream(Upstream):
    """Honest until told otherwise. Use it as a context manager; `ca_file` is what a client must trust."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str = NAME,
        storage_name: str = STORAGE_NAME,
        access: Access | None = None,
        clear: bool = False,
    ) -> None:
        self.trust = Trust(directory)
        self.ca_file = self.trust.ca_file
        super().__init__(
            certify=None if clear else self.trust.certify, name=name, storage_name=storage_name, access=access
        )
        self._lock = threading.Lock()
        self._lies: list[Lie] = []
        self._gates: list[Gate] = []
        self.registry.around = self.storage.around = self._around

    def lie(self, where: str, fault: Fault, *, method: str | None = None, times: int | None = None) -> Lie:
        """Put `fault` before every request, or `times` requests, of a kind or of a path pattern ("/v2/*/tags/list").

        Kinds: ping, token, tag, manifest, blob, tags, download, object (at the storage host), other. Several lies add
        up, the first one outermost.
        """
        lie = Lie(where, fault, method, times)
        with self._lock:
            self._lies.append(lie)
        return lie

    def truth(self) -> None:
        """Forget every lie."""
        with self._lock:
            self._lies.clear()

    def gate(self) -> Gate:
        """A gate that does not outlive this upstream: `lie("object", gate.hold_after(1024))`."""
        gate = Gate()
        self._gates.append(gate)
        return gate

    def configuration(self, data: Path, *, listen: Collection[str] = ("tls", "clear", "mirror")) -> str:
        """What a cache with this data directory needs to find us, as TOML."""
        return configuration(data, ca_file=self.ca_file, upstream=self, listen=listen)

    @override
    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for gate in self._gates:
            gate.abandon()
        super().__exit__(kind, error, trace)

    def _around(self, incoming: Incoming, proceed: Proceed) -> Answer:
        with self._lock:
            told = [lie for lie in self._lies if lie.left != 0 and lie.covers(incoming)]
            for lie in told:
                lie.told += 1
                lie.left = None if lie.left is None else lie.left - 1
        for lie in reversed(told):
            proceed = _wrap(lie.fault, proceed)
        return proceed(incoming)


def _wrap(fault: Fault, proceed: Proceed) -> Proceed:
    return lambda incoming: fault(incoming, proceed)


_ELSEWHERE = Memory(b"elsewhere")


class Witness(Host):
    """Answers anything with 200 and the same bytes; what it was told is in `requests`."""

    def __init__(
        self, name: str = "elsewhere.demo", *, tls: ssl.SSLContext | None, content: Content = _ELSEWHERE
    ) -> None:
        super().__init__(name, tls=tls, ledger=Ledger())
        self.content = content

    @override
    def answer(self, incoming: Incoming) -> Answer:
        return ranged(incoming, self.content, {"Content-Type": "application/octet-stream"})
