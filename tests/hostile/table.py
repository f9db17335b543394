"""docs/hostile.md, made of the cases."""

from dataclasses import dataclass
from pathlib import Path

from tests.hostile.case import Case
from tests.hostile.cases import (
    connect,
    content,
    credentials,
    framing,
    headers,
    hosts,
    mirror,
    pages,
    pushed,
    pushes,
    registry,
    slow,
    targets,
    tls,
    tokens,
)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/hostile.md"


@dataclass(frozen=True, slots=True)
class Family:
    """Cases of one kind, and tests elsewhere that belong to them."""

    key: str
    title: str
    cases: tuple[Case, ...]
    more: str = ""


FAMILIES = (
    Family("framing", "Request framing and smuggling", framing.CASES, "`tests/proxy/test_listeners.py`"),
    Family("targets", "Targets", targets.CASES, "`tests/oci/test_operation.py`"),
    Family("hosts", "Host and server name", hosts.CASES, "`tests/proxy/test_identity.py`"),
    Family("connect", "CONNECT", connect.CASES, "`tests/proxy/test_connect.py`, `tests/upstream/test_dial.py`"),
    Family("tls", "TLS, and what the CA signs", tls.CASES, "`tests/proxy/test_intercept.py`, `tests/test_ca.py`"),
    Family("headers", "Header fields", headers.CASES, "`tests/proxy/test_listeners.py`"),
    Family(
        "credentials", "Credentials", credentials.CASES, "`tests/test_rights_on_hit.py`, `tests/local/test_tokens.py`"
    ),
    Family("content", "Manifests, digests and names", content.CASES, "`tests/upstream/test_flight.py`"),
    Family(
        "registry",
        "A hostile registry",
        registry.CASES,
        "`tests/upstream/test_flight.py`, `tests/upstream/test_reach.py`",
    ),
    Family("tokens", "A hostile token server", tokens.CASES, "`tests/upstream/test_tokens.py`"),
    Family("mirror", "Mirrors", mirror.CASES, "`tests/proxy/test_mirror.py`, `tests/test_mirror.py`"),
    Family(
        "pushes",
        "Pushes to the cache's own registry",
        pushes.CASES,
        "`tests/local/`, `tests/proxy/test_receive.py`, `tests/proxy/test_reception.py`, `tests/faults/test_pushes.py`",
    ),
    Family("pushed", "What is pushed there", pushed.CASES, "`tests/local/test_manifests.py`"),
    Family(
        "pages",
        "Own pages and the admin listener",
        pages.CASES,
        "`tests/welcome/test_pages.py`, `tests/admin/test_server.py`",
    ),
    Family(
        "slow",
        "Slow clients and floods",
        slow.CASES,
        "`tests/proxy/test_patience.py`, `tests/proxy/test_delivery.py`; thousands of idle connections: "
        "`tests/proxy/test_crowd.py` (`make e2e`)",
    ),
)

HEAD = """\
# Hostile inputs

What was sent to the cache by clients, registries and token servers that mean harm, and what must come of it. Each row
is a test (`tests/hostile/`). All of them run against one cache, and after each of them it is checked that

- nobody was asked who need not be, and a host that is no registry's was not connected to;
- the cache kept nothing that was not proven, logged no failure of its own, and serves on.

This page is made by `scripts/hostile_table`.
"""


def render() -> str:
    """The whole page."""
    total = sum(len(family.cases) for family in FAMILIES)
    parts = [HEAD, "\n| family | cases | more of it |\n|---|---|---|\n"]
    parts += [f"| {family.title} | {len(family.cases)} | {family.more} |\n" for family in FAMILIES]
    parts.append(f"| all | {total} | |\n")
    for family in FAMILIES:
        parts.append(f"\n## {family.title}\n\n| what is tried | what must happen |\n|---|---|\n")
        parts += [f"| {_cell(case.name)} | {_cell(case.must)} |\n" for case in family.cases]
    return "".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write it."""
    PAGE.write_text(render())
