"""The product as a process on the cache host, with its settings, its CA and its access lines."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.lab import network
from tests.lab.lab import ROOT, Lab
from tests.lab.process import Process, wait_until

Event = Mapping[str, object]
Section = Mapping[str, object] | list[Mapping[str, object]]
"""A table, or the rows of one (`policy`)."""

TLS, CLEAR, MIRROR = 443, 80, 5000
OWN = "registry.lan"
"""A name of the cache itself."""
MIRROR_URL = f"http://{network.CACHE}:{MIRROR}"


def toml(settings: Mapping[str, object], above: str = "") -> str:
    """Settings as TOML: values first, then tables and what is below them."""
    plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {_value(value)}" for key, value in plain.items()]
    for key, value in settings.items():
        if isinstance(value, Mapping):
            name = f"{above}{json.dumps(key)}"
            lines.append(f"[{name}]\n{toml(value, f'{name}.')}")
    return "\n".join(lines)


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(key)} = {_value(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value)


class Product:
    """One `mitm-cache serve`. A data directory may be given, so that several share it."""

    def __init__(
        self,
        lab: Lab,
        data: Path,
        *,
        ports: Mapping[str, int] | None = None,
        sections: Mapping[str, Section] | None = None,
        address: str = network.CACHE,
    ) -> None:
        self.lab, self.data = lab, data
        self._ports = {"tls": TLS, "clear": CLEAR, "mirror": MIRROR} if ports is None else dict(ports)
        listeners = {name: [f"{address}:{port}"] for name, port in self._ports.items()}
        self.settings: dict[str, object] = {
            "data_dir": str(data),
            "names": [OWN],
            "listen": {"tls": [], "clear": [], "connect": [], "mirror": [], "admin": [], **listeners},
            "upstream": {"ca_file": str(lab.ca_file), "resolvers": [network.DNS]},
            "registries": {"private.example.com": {"url": "https://private.example.com"}},
            "log": {"format": "json"},
        }
        for name, section in (sections or {}).items():
            here = self.settings.get(name, {})
            both = isinstance(section, Mapping) and isinstance(here, Mapping)
            self.settings[name] = {**here, **section} if both else section  # type: ignore[dict-item]
        self.process: Process | None = None

    def start(self) -> "Product":
        """Start it and wait until it says that it is ready."""
        config = self.lab.fresh("product", ".toml")
        config.write_text(toml(self.settings))
        command = [sys.executable, "-m", "mitm_cache", "--config", str(config), "serve"]
        self.process = process = self.lab.cache.start("product", *command, cwd=ROOT)
        # Not the ports: another process over the same data directory may have them too.
        process.wait_until(lambda: "Ready." in process.err.read_text(), "the product", seconds=120)
        return self

    def stop(self) -> None:
        """End it as a service manager does."""
        if self.process is not None:
            self.process.stop()

    @property
    def ca(self) -> str:
        """The certificate of its CA."""
        return (self.data / "ca" / "ca.crt").read_text()

    def said(self) -> str:
        """Its last output."""
        return self.process.said() if self.process else ""

    def events(self, since: int = 0) -> list[Event]:
        """The access lines so far; the number of them is a mark."""
        assert self.process is not None
        # The last line may be half written.
        whole, _, _ = self.process.out.read_text().rpartition("\n")
        rows: list[Event] = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return rows[since:]

    def wait_for(self, wanted: Callable[[Event], bool], *, since: int = 0, seconds: float = 60) -> Event:
        """The first access line that is wanted: it is written after the client has its last byte."""

        def found() -> list[Event]:
            return [event for event in self.events(since) if wanted(event)]

        wait_until(lambda: bool(found()), f"an access line\n{self.said()}", seconds=seconds)
        return found()[0]
