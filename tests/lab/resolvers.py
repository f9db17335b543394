"""What answers for names on a host of the lab itself: dnsmasq with records, or systemd-resolved as on Ubuntu."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.lab.host import Host
from tests.lab.process import Process

RESOLVED = "/lib/systemd/systemd-resolved"
STUB = "127.0.0.53"


def _wait(server: Process, host: Host, where: str) -> None:
    def answers() -> bool:
        rows = host.attempt("ss", "--no-header", "--listening", "--udp", "--numeric").stdout.split()
        return where in rows

    server.wait_until(answers, f"{server.name} on {where}")


@contextmanager
def dnsmasq(host: Host, records: Mapping[str, str], *, address: str = "127.0.0.1", behind: str = "") -> Iterator[None]:
    """A name server on port 53 of `address`: these names, and everything else from the server `behind`, if any."""
    flags = ["-d", "-R", "-h", "-C", "/dev/null", "-x", "", "--bind-interfaces", "--except-interface=none"]
    known = [f"--host-record={name},{where}" for name, where in records.items()]
    ask = [f"--server={behind}"] if behind else []
    server = host.start("names", "dnsmasq", *flags, f"--listen-address={address}", *known, *ask)
    try:
        _wait(server, host, f"{address}:53")
        yield
    finally:
        server.stop()


@contextmanager
def resolved(host: Host, behind: str) -> Iterator[Path]:
    """systemd-resolved, which answers from the host's hosts file first and then from the server `behind`.

    Gives the file in which it tells of that server. What is started meanwhile sees a /run of the host's own.
    """
    run = host.folder / "run"
    (run / "systemd").mkdir(parents=True)
    settings = host.etc / "systemd" / "resolved.conf"
    settings.parent.mkdir(exist_ok=True)
    # The lab's names are not signed, and nothing is asked of the neighbours.
    settings.write_text(f"[Resolve]\nDNS={behind}\nFallbackDNS=\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\n")
    (host.etc / "resolv.conf").write_text(f"nameserver {STUB}\noptions edns0 trust-ad\nsearch .\n")
    server = host.start("resolved", RESOLVED)
    try:
        _wait(server, host, f"{STUB}%lo:53")
        yield run / "systemd" / "resolve" / "resolv.conf"
    finally:
        server.stop()
        settings.unlink()
        shutil.rmtree(run)
