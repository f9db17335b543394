"""The services of systemd that pull, and which of them a node has."""

from collections.abc import Mapping

from mitm_cache.node.model import Files, Target

UNITS = "/etc/systemd/system"
SERVICES: Mapping[Target, tuple[str, ...]] = {
    Target.DOCKER: ("docker",),
    Target.CONTAINERD: ("containerd",),
    Target.CRIO: ("crio",),
    Target.K3S: ("k3s", "k3s-agent"),
    Target.RKE2: ("rke2-server", "rke2-agent"),
}
_FOLDERS = (UNITS, "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")


def installed(target: Target, files: Files) -> tuple[str, ...]:
    """The target's services that have a unit here; the first where none has one; none for what is no service."""
    services = SERVICES.get(target, ())
    there = {name for folder in _FOLDERS for name in files.names(folder)}
    return tuple(service for service in services if f"{service}.service" in there) or services[:1]
