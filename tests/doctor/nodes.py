"""Scenes and nodes for the tests of the doctor: real files below a folder, and facts as they would be read."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mitm_cache.config import load
from mitm_cache.doctor.finding import Finding, Status
from mitm_cache.doctor.mirror import Mirror
from mitm_cache.doctor.mirrors import DOCKERD
from mitm_cache.doctor.node import DAEMON_JSON, Node
from mitm_cache.doctor.probes import Resolution, Way
from mitm_cache.doctor.scene import Scene, Wanted, target
from mitm_cache.registries import DOCKER_HUB, TABLE, Known, Registry

CACHE = "10.0.0.5"
QUAY = Registry("quay.io", "quay.io")
HUB = DOCKER_HUB
TLS, CONNECT, MIRROR = Way("tls", CACHE, 443), Way("connect", CACHE, 3128), Way("mirror", CACHE, 5000)


def scene(root: Path, *, asked: Iterable[str] = (), **more: Any) -> Scene:
    """A machine whose files are below `root`, with nothing on PATH and in no environment but what is given."""
    known = more.pop("known", Known(TABLE))
    wanted = []
    for text in asked:
        name, _, image = text.partition("/")
        wanted.append(Wanted(known.find(name) or Registry(name, name), image))
    settings: dict[str, Any] = {"environ": {"PATH": "", "SSL_CERT_FILE": ""}, "file": root / "config.toml", **more}
    return Scene(
        config=lambda: load(file=Path("/dev/null"), environ={}, flags={"data_dir": str(root / "data")}),
        known=known,
        wanted=tuple(wanted),
        root=root,
        **settings,
    )


def node(names: Mapping[str, Iterable[str]] | None = None, **more: Any) -> Node:
    """A node that has these addresses for names; quay.io and Docker Hub lead to the cache unless told otherwise."""
    led = dict.fromkeys(("quay.io", *HUB.names), (CACHE,))
    resolved = {name: Resolution(tuple(found)) for name, found in {**led, **(names or {})}.items()}
    return replace(Node(caches=(CACHE,), resolved=resolved, ways=(TLS,)), **more)


def mirror(base: str) -> Mirror:
    """A mirror that dockerd's file names."""
    wanted = Wanted(HUB, "library/x:1")
    return Mirror(client=DOCKERD, source=Path(DAEMON_JSON), wanted=wanted, url=f"{base}{target(wanted)}")


def put(root: Path, name: str, text: str) -> Path:
    """A file below `root` by its name on a real machine."""
    path = root / name.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def worst(findings: Iterable[Finding]) -> Finding:
    """The finding that matters most; each that is not OK must name its cure."""
    found = list(findings)
    assert found
    assert all(each.cure for each in found if each.status is not Status.OK), found
    order = [Status.OK, Status.SKIP, Status.WARN, Status.FAIL]
    return max(found, key=lambda each: order.index(each.status))
