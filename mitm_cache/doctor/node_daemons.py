"""Whether the daemons of a node live by what its files say now: restarted since, and with one proxy."""

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, override

from mitm_cache.doctor.finding import Finding, fail, ok, skip, warn
from mitm_cache.doctor.mirror import texts
from mitm_cache.doctor.node import UNITS, Node, ProxySetting, drop_ins, hosts_of
from mitm_cache.doctor.probes import at
from mitm_cache.doctor.processes import Process
from mitm_cache.doctor.scene import STEP, Scene
from mitm_cache.registries import Registry
from mitm_cache.upstream.trust import system_store
from mitm_cache.wire.proxies import Bypass

ANCHORS = (
    "/usr/local/share/ca-certificates/mitm-cache.crt",
    "/etc/pki/ca-trust/source/anchors/mitm-cache.crt",
    "/etc/pki/trust/anchors/mitm-cache.crt",
    "/etc/ca-certificates/trust-source/anchors/mitm-cache.crt",
)
"""Where `install-ca.sh` puts the CA."""
_TICK = 1.0
"""Seconds: the start of a process is known to a hundredth, the clock at boot to a second."""


def check_freshness(scene: Scene, node: Node) -> Iterator[Finding]:
    """Whether each daemon has started since what it reads only then was changed."""
    if not node.daemons:
        yield skip("daemons", "dockerd, containerd", "none runs here", "systemctl start docker (or containerd)")
    for daemon in node.daemons:
        newer = [path for path in read_at_start(scene, node, daemon) if _changed(path) > daemon.started + _TICK]
        if daemon.name == "dockerd" and node.daemon_json in newer and (live := _ask_dockerd(scene, daemon)) is not None:
            newer.remove(node.daemon_json)
            yield from _compare(node, live)
        yield judge_freshness(daemon, newer)


def read_at_start(scene: Scene, node: Node, daemon: Process) -> list[Path]:
    """The files that a daemon reads when it starts: the CA, its settings, its unit's drop-ins."""
    anchors = [path for path in map(scene.path, ANCHORS) if path.is_file()]
    bundle = system_store(scene.environ)
    # An update of the system's own certificates is no reason to restart: the CA's own file tells more.
    files = anchors or ([bundle] if bundle else [])
    if daemon.name == "dockerd":
        files.append(node.daemon_json)
    elif daemon.name == "containerd":
        named = daemon.option("--config") or daemon.option("-c")
        files.append(Path(named) if named else scene.path("/etc/containerd/config.toml"))
    return files + drop_ins(scene, daemon.name)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def judge_freshness(daemon: Process, newer: list[Path]) -> Finding:
    """`newer`: the files that were changed after the daemon started."""
    subject = f"{daemon.name} (process {daemon.pid})"
    if not newer:
        return ok("daemons", subject, "has started since its CA and settings were changed")
    reload = "systemctl daemon-reload && " if any(path.suffix == ".conf" for path in newer) else ""
    words = f"started before {', '.join(map(str, newer))} was changed, which it reads only then"
    return fail("daemons", subject, words, f"sudo sh -c '{reload}systemctl restart {UNITS[daemon.name]}'")


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=STEP)
        self._path = path

    @override
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(STEP)
        self.sock.connect(self._path)


def _ask_dockerd(scene: Scene, daemon: Process) -> Mapping[str, Any] | None:
    """The registries as dockerd has them now, since it may have been told to reload; None where it does not tell."""
    named = daemon.option("-H") or daemon.option("--host")
    path = named.removeprefix("unix://") if named.startswith("unix://") else str(scene.path("/var/run/docker.sock"))
    connection = _Unix(path)
    try:
        connection.request("GET", "/info")
        document = json.loads(connection.getresponse().read(1 << 20))
        registries = document["RegistryConfig"]
        return registries if isinstance(registries, dict) else None
    except (OSError, http.client.HTTPException, ValueError, RecursionError, KeyError, TypeError):
        return None
    finally:
        connection.close()


def _compare(node: Node, live: Mapping[str, Any]) -> Iterator[Finding]:
    """Mirrors and insecure registries, in the file and in the daemon."""
    wanted = {_plain(url) for url in texts(node.docker.get("registry-mirrors"))}
    has = {_plain(url) for url in live.get("Mirrors") or []}
    indexes: Mapping[str, Any] = live.get("IndexConfigs") or {}
    insecure = {name for name, index in indexes.items() if not index.get("Secure", True)}
    missing = {text for text in node.insecure if "/" not in text} - insecure
    if wanted != has or missing:
        words = "dockerd does not live by registry-mirrors and insecure-registries of the file as it is now"
        yield fail(
            "daemons", str(node.daemon_json), words, "sudo systemctl reload docker (restart it if that does not help)"
        )
    else:
        yield ok("daemons", str(node.daemon_json), "changed since dockerd started, and its registries are those it has")


def _plain(url: object) -> str:
    return str(url).rstrip("/")


def check_proxies(scene: Scene, node: Node) -> Iterator[Finding]:
    """Whether HTTPS_PROXY and NO_PROXY of daemons and files agree with each other and with the cache."""
    hidden = [daemon for daemon in node.daemons if daemon.environ is None]
    for daemon in hidden:
        yield skip(
            "proxy",
            f"{daemon.name} (process {daemon.pid})",
            "its environment may not be read",
            "sudo mitm-cache doctor",
        )
    used = [setting for setting in node.proxies if setting.proxy]
    if not used:
        yield ok("proxy", "HTTPS_PROXY", "not set for any daemon" if not hidden else "not set in any file")
        return
    for setting in used:
        yield _judge_proxy(scene, node, setting)
    yield from _judge_stale(node, used)


def _judge_proxy(scene: Scene, node: Node, setting: ProxySetting) -> Finding:
    right, source = f"HTTPS_PROXY=http://{_cache(scene, node)}", setting.source
    if not _is_cache(node, setting.proxy):
        return _judge_other_proxy(scene, node, setting, right)
    if setting.proxy.startswith("https://"):
        return fail("proxy", source, "HTTPS_PROXY says https://, and the listener speaks plain HTTP CONNECT", right)
    past = [
        one for one in scene.registries if _bypassed(setting, one) and not any(map(node.leads_here, hosts_of(one)[:1]))
    ]
    if past:
        words = f"NO_PROXY holds {', '.join(one.name for one in past)}: pulled past the cache"
        return fail("proxy", source, words, f"take it out of NO_PROXY={setting.bypass}, then restart the daemon")
    return ok("proxy", source, f"HTTPS_PROXY leads to the cache ({node.way('connect')})")


def _judge_other_proxy(scene: Scene, node: Node, setting: ProxySetting, right: str) -> Finding:
    past = [one.name for one in scene.registries if not _bypassed(setting, one)]
    words = f"HTTPS_PROXY is {_harmless(setting.proxy)}, not the cache"
    if not past:
        return ok("proxy", setting.source, f"{words}, and NO_PROXY leaves the registries out")
    if node.way("tls") is None:
        return warn("proxy", setting.source, words, f"{right}, or none")
    words = f"{words}: pulls go there, past the hosts entries"
    return fail("proxy", setting.source, words, f"NO_PROXY={','.join(past)} for it, or {right}")


def _judge_stale(node: Node, used: list[ProxySetting]) -> Iterator[Finding]:
    """Daemons that run without what a file has for them, and daemons of one node that differ."""
    live = {setting.daemon: setting for setting in node.proxies if setting.daemon and "process" in setting.source}
    for daemon, unit in UNITS.items():
        for setting in used:
            if f"/{unit}.service.d/" in setting.source and daemon in live and live[daemon].proxy != setting.proxy:
                yield fail(
                    "proxy",
                    live[daemon].source,
                    f"runs without HTTPS_PROXY as in {setting.source}",
                    f"sudo sh -c 'systemctl daemon-reload && systemctl restart {unit}'",
                )
    if len({setting.proxy for setting in live.values()}) > 1 and node.way("tls") is None:
        told = "; ".join(f"{name}: {_harmless(one.proxy) or 'none'}" for name, one in sorted(live.items()))
        cure = "the same HTTPS_PROXY in a drop-in of each (docs/clients.md), unless one of them pulls nothing"
        yield warn("proxy", ", ".join(sorted(live)), f"HTTPS_PROXY differs: {told}", cure)


def _is_cache(node: Node, url: str) -> bool:
    return any(f"//{host}:" in f"{url if '//' in url else f'//{url}'}:" for host in _names_of_cache(node))


def _names_of_cache(node: Node) -> list[str]:
    named = [
        name for name, found in node.resolved.items() if found.addresses and set(found.addresses) <= set(node.caches)
    ]
    return [f"[{one}]" if ":" in one else one for one in (*node.caches, *named)]


def _bypassed(setting: ProxySetting, registry: Registry) -> bool:
    for text in filter(None, map(str.strip, setting.bypass.split(","))):
        try:
            if any(Bypass.of((text,)).matches(host, 443) for host in hosts_of(registry)[:1]):
                return True
        except ValueError:
            continue  # what is no host matches none in a daemon either
    return False


def _cache(scene: Scene, node: Node) -> str:
    way = node.way("connect")
    address = node.caches[0] if node.caches else "CACHE"
    return at(address, way.port if way else scene.ports["connect"])


def _harmless(url: str) -> str:
    """Without what may be a password."""
    scheme, slashes, rest = url.rpartition("//")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}"
