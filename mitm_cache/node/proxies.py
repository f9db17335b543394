"""HTTPS_PROXY for a daemon, by a drop-in of its systemd unit; for podman, which has no daemon, by containers.conf."""

import re
from typing import Any

from mitm_cache.errors import ConfigError
from mitm_cache.node.model import RELOAD_UNITS, Draft, Files, Settings, Target, restart
from mitm_cache.node.services import UNITS, installed
from mitm_cache.node.tomls import quoted, read_toml

DROP_IN = "mitm-cache.conf"
PODMAN, PODMAN_FOLDER = "/etc/containers/containers.conf", "/etc/containers/containers.conf.d"

LOCAL = ("localhost", "127.0.0.0/8", "::1", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
CLUSTER = (".svc", ".cluster.local")
"""What is inside: the cache opens no tunnel to it, and most pods and services have private addresses."""

_SETS_PROXY = re.compile(r"(?<![A-Za-z_])((?:CONTAINERD_)?https_proxy)\s*=", re.IGNORECASE)


def no_proxy(settings: Settings) -> str:
    """Hosts and networks reached without the proxy: what is local, a cluster's own, the cache, and what is given."""
    own = (settings.caches[0].host,)
    return ",".join(dict.fromkeys((*LOCAL, *CLUSTER, *own, *settings.no_proxy)))


def plan_proxy(draft: Draft, settings: Settings, files: Files) -> None:
    """The drop-in of each unit that the client has here, or podman's file."""
    if settings.target is Target.PODMAN:
        _plan_podman(draft, settings, files)
        return
    # k3s and RKE2 hand variables of this prefix to their containerd alone, and keep them from their own traffic.
    prefix = "CONTAINERD_" if settings.target in (Target.K3S, Target.RKE2) else ""
    lines = ["[Service]", *(f'Environment="{prefix}{line}"' for line in _variables(settings))]
    for service in installed(settings.target, files):
        folder = f"{UNITS}/{service}.service.d"
        _refuse_other_proxy(files, service, folder)
        draft.put(f"{folder}/{DROP_IN}", "\n".join(lines) + "\n", RELOAD_UNITS, restart(service))


def _variables(settings: Settings) -> list[str]:
    return [f"HTTPS_PROXY={settings.proxy}", f"NO_PROXY={no_proxy(settings)}"]


def _refuse_other_proxy(files: Files, service: str, folder: str) -> None:
    """A proxy that the node needs would be lost, and the pulls with it."""
    drop_ins = [f"{folder}/{name}" for name in files.names(folder) if name.endswith(".conf") and name != DROP_IN]
    for path in (f"{UNITS}/{service}.service", f"{UNITS}/{service}.service.env", f"/etc/default/{service}", *drop_ins):
        for line in (files.read(path) or "").splitlines():
            found = _SETS_PROXY.search(line)
            if found and not line.lstrip().startswith(("#", ";")):
                raise ConfigError(
                    f"{path} sets {found[1]} already: give that proxy to the cache (upstream.proxy) and take it out "
                    "here first, or use --way hosts"
                )


def _plan_podman(draft: Draft, settings: Settings, files: Files) -> None:
    """podman takes the last file's `engine.env` alone, so what others set is repeated."""
    set_before: list[str] = []
    for path in (PODMAN, *(f"{PODMAN_FOLDER}/{name}" for name in files.names(PODMAN_FOLDER) if name.endswith(".conf"))):
        if path == f"{PODMAN_FOLDER}/{DROP_IN}":
            continue
        env = _engine(path, files.read(path)).get("env")
        if isinstance(env, list):
            set_before = [str(line) for line in env]
    for line in set_before:
        if _SETS_PROXY.match(line):
            raise ConfigError(f"{PODMAN} or its folder sets {line.partition('=')[0]} already: take it out first")
    values = ", ".join(quoted(line) for line in (*set_before, *_variables(settings)))
    draft.put(f"{PODMAN_FOLDER}/{DROP_IN}", f"[engine]\nenv = [{values}]\n")
    draft.note("podman hands the proxy to containers as well, unless they are run with --http-proxy=false.")


def _engine(path: str, text: str | None) -> dict[str, Any]:
    engine = read_toml(path, text).get("engine", {})
    return engine if isinstance(engine, dict) else {}
