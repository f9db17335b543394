"""Where the doctor looks, and what it was asked: one frozen value that every check is given."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mitm_cache.config import PORTS, Config
from mitm_cache.registries import DOCKER_HUB, Known, Registry

SECONDS = 5.0
"""The time of a check."""
STEP = 3.0
"""The time of one connection or answer within it."""
IMAGES = {
    "docker.io": "library/hello-world:latest",
    "quay.io": "prometheus/busybox:latest",
    "registry.k8s.io": "pause:3.9",
    "mcr.microsoft.com": "hello-world:latest",
    "public.ecr.aws": "docker/library/hello-world:latest",
}
"""Small public images, to be asked for by HEAD."""
USUAL = (DOCKER_HUB.name, "quay.io")
"""The registries that are asked for an image where none is named."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A registry that was asked for, and an image of it (`lab/tiny:1`), or ""."""

    registry: Registry
    image: str = ""


def target(wanted: Wanted) -> str:
    """The path of a manifest, or of the registry's root where no image is known."""
    if not wanted.image:
        return "/v2/"
    repository, sign, reference = wanted.image.partition("@")
    if not sign:
        repository, _, reference = wanted.image.rpartition(":")
    return f"/v2/{repository}/manifests/{reference}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """`caches`, `wanted` and `ca` are what the command line names. `root` and `proc` are the machine's files."""

    config: Callable[[], Config]
    known: Known
    file: Path
    caches: tuple[str, ...] = ()
    wanted: tuple[Wanted, ...] = ()
    ca: Path | None = None
    root: Path = Path("/")
    proc: Path = Path("/proc")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    ports: Mapping[str, int] = field(default_factory=lambda: {name: usual for name, (usual, _) in PORTS.items()})
    now: Callable[[], float] = time.time

    def path(self, name: str) -> Path:
        """A file of the machine by its usual name, such as `/etc/hosts`."""
        return self.root / name.lstrip("/")

    @property
    def registries(self) -> tuple[Registry, ...]:
        """Those that were asked for, else all that are known but the cache's own, which is not led anywhere."""
        return tuple(each.registry for each in self.wanted) or tuple(one for one in self.known if not one.is_local)

    @property
    def asked(self) -> frozenset[str]:
        """The names of those that were asked for."""
        return frozenset(each.registry.name for each in self.wanted)

    def images(self) -> tuple[Wanted, ...]:
        """What to ask for by HEAD: of what was asked for, else of the usual registries."""
        wanted = self.wanted or tuple(Wanted(one) for one in self.known if one.name in USUAL)
        return tuple(
            each if each.image else Wanted(each.registry, IMAGES.get(each.registry.name, "")) for each in wanted
        )
