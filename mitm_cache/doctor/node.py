"""What is set up on a node, read once: names, daemons, their settings, and the ways to the cache that follow."""

import json
import re
import shutil
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mitm_cache.doctor import processes
from mitm_cache.doctor.finding import Finding
from mitm_cache.doctor.mirror import Files, Mirror
from mitm_cache.doctor.mirror import texts as _texts
from mitm_cache.doctor.mirror_containerd import find_folder, find_folders
from mitm_cache.doctor.mirrors import read_mirrors
from mitm_cache.doctor.probes import Resolution, Way, resolve
from mitm_cache.doctor.processes import Process
from mitm_cache.doctor.scene import Scene
from mitm_cache.parsing import is_address
from mitm_cache.registries import DOCKER_HUB, LOCALHOST, Registry

UNITS = {"dockerd": "docker", "containerd": "containerd", "crio": "crio"}
"""The daemons that pull, and their systemd units."""
PROGRAMS = {
    "docker": ("dockerd", "docker"),
    "containers": ("podman", "skopeo", "buildah", "crio"),
    "containerd": ("containerd", "ctr"),
}
"""The programs by the folder in /etc that they read."""
DAEMON_JSON = "/etc/docker/daemon.json"
_SBIN = ":/usr/local/sbin:/usr/sbin:/sbin"
_VARIABLE = re.compile(r"""\b(https_proxy|no_proxy)=(?:'([^']*)'|"([^"]*)"|([^\s"']*))""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HostsLine:
    """A line of a hosts file."""

    number: int
    address: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProxySetting:
    """HTTPS_PROXY and NO_PROXY as one place has them; `daemon` is the process that lives by it, if one does."""

    source: str
    proxy: str
    bypass: str
    daemon: str = ""


@dataclass(frozen=True, slots=True)
class OwnTrust:
    """What a client's own folders say of a registry."""

    files: tuple[Path, ...] = ()
    unverified: str = ""  # the file that tells it not to verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The facts that the checks of a node share."""

    caches: tuple[str, ...]
    hosts: tuple[HostsLine, ...] = ()
    resolved: Mapping[str, Resolution] = field(default_factory=dict)
    daemons: tuple[Process, ...] = ()
    clients: frozenset[str] = frozenset()
    daemon_json: Path = Path(DAEMON_JSON)
    docker: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""  # with daemon.json
    proxies: tuple[ProxySetting, ...] = ()
    mirrors: tuple[Mirror, ...] = ()
    ways: tuple[Way, ...] = ()
    told: tuple[Finding, ...] = ()  # what was wrong with files when they were read

    def leads_here(self, host: str) -> bool:
        """Whether every address of a name is the cache's."""
        addresses = self.resolved.get(host, Resolution()).addresses
        return bool(addresses) and set(addresses) <= set(self.caches)

    def at_cache(self, host: str) -> bool:
        """Whether an address is the cache's, or every address of a name."""
        return str(ip_address(host)) in self.caches if is_address(host) else self.leads_here(host)

    def mirrored(self, registry: str, client: str = "") -> bool:
        """Whether a mirror, of this client if one is named, leads to the cache for a registry."""
        return any(
            each.wanted.registry.name == registry and client in ("", each.client) and self.at_cache(each.host)
            for each in self.mirrors
        )

    def way(self, kind: str) -> Way | None:
        """The first way of a kind, where that kind is set up."""
        return next((way for way in self.ways if way.kind == kind), None)

    @property
    def insecure(self) -> frozenset[str]:
        """Registries that dockerd does not verify."""
        return frozenset(_texts(self.docker.get("insecure-registries")))


def hosts_of(registry: Registry) -> tuple[str, ...]:
    """The names of a registry that DNS could know, the one of its API first."""
    ordered = sorted(registry.hosts, key=lambda name: name != registry.host)
    names = (name.partition(":")[0] for name in ordered)
    own = {LOCALHOST} if registry.is_local else set()  # which is this node, wherever the cache is
    return tuple(name for name in dict.fromkeys(names) if name not in own and not is_address(name))


def look(scene: Scene) -> Node:
    """Read everything. Takes as long as names take to be resolved, with a limit."""
    hosts = read_hosts(scene.path("/etc/hosts"))
    daemons = processes.find(scene.proc, UNITS)
    daemon_json = _daemon_json(scene, daemons)
    docker, trouble = read_daemon_json(daemon_json)
    proxies = (*_live_proxies(daemons), *_files_proxies(scene, docker), *_shell_proxy(scene))
    files = Files(scene)
    mirrors = read_mirrors(files, daemons, daemon_json, docker)
    names = {host for registry in (*scene.known, *scene.registries) for host in hosts_of(registry)}
    ends = [*_most(mirrors), *(_end(setting.proxy)[0] for setting in proxies)]
    others = {host for host in (*ends, *(each.host for each in mirrors)) if host and not is_address(host)}
    others |= {cache for cache in scene.caches if not is_address(cache)}
    resolved = resolve(names | others)
    caches = _addresses(scene.caches, resolved) or _guess(hosts, names, ends, resolved)
    node = Node(
        caches=caches,
        hosts=hosts,
        resolved=resolved,
        daemons=daemons,
        clients=_clients(scene, daemons),
        daemon_json=daemon_json,
        docker=docker,
        trouble=trouble,
        proxies=proxies,
        mirrors=mirrors,
        told=tuple(files.findings),
    )
    return replace(node, ways=tuple(dict.fromkeys(_ways(scene, node, names))))


def read_hosts(path: Path) -> tuple[HostsLine, ...]:
    """The lines of a hosts file that say something; none where it cannot be read."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    found = []
    for number, line in enumerate(lines, 1):
        address, *names = line.partition("#")[0].split() or ("",)
        if names and is_address(address):
            found.append(HostsLine(number, str(ip_address(address)), tuple(name.lower() for name in names)))
    return tuple(found)


def read_daemon_json(path: Path) -> tuple[Mapping[str, Any], str]:
    """dockerd's settings, and what is wrong with the file or ""."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"{path} cannot be read: {error.strerror}"
    except (ValueError, RecursionError) as error:
        return {}, f"{path} is not JSON: {error}"
    return (document, "") if isinstance(document, dict) else ({}, f"{path} is not a JSON object")


def own_trust(scene: Scene, client: str, registry: Registry) -> OwnTrust:
    """What a client's own folders have for a registry; containers' tools read docker's too."""
    places = {"docker": ("docker",), "containers": ("containers", "docker"), "containerd": ("containerd",)}[client]
    files: list[Path] = []
    unverified = ""
    for place in places:
        for name in registry.names:
            own = find_folder(find_folders(scene), name) if place == "containerd" else None
            folder = own or scene.path(f"/etc/{place}/certs.d/{name}")
            files += sorted(folder.glob("*.crt"))
            if own and (folder / "hosts.toml").is_file():
                named, skips = _read_hosts_toml(folder / "hosts.toml")
                files += [scene.path(file) if file.startswith("/") else folder / file for file in named]
                unverified = str(folder / "hosts.toml") if skips else unverified
    return OwnTrust(tuple(dict.fromkeys(file for file in files if file.is_file())), unverified)


def _read_hosts_toml(path: Path) -> tuple[list[str], bool]:
    """The files of CAs that containerd is told of, and whether it is told not to verify."""
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return [], False
    hosts = document.get("host")
    tables = [document, *(hosts.values() if isinstance(hosts, dict) else ())]
    named: list[str] = []
    for table in (table for table in tables if isinstance(table, dict)):
        value = table.get("ca", [])
        named += [value] if isinstance(value, str) else _texts(value)
    return named, any(isinstance(table, dict) and table.get("skip_verify") is True for table in tables)


def _daemon_json(scene: Scene, daemons: tuple[Process, ...]) -> Path:
    named = next((one.option("--config-file") for one in daemons if one.name == "dockerd"), "")
    return Path(named) if named else scene.path(DAEMON_JSON)


def _clients(scene: Scene, daemons: tuple[Process, ...]) -> frozenset[str]:
    search, running = scene.environ.get("PATH", "") + _SBIN, {daemon.name for daemon in daemons}
    if scene.root != Path("/"):
        search = ":".join(str(scene.path(folder)) for folder in search.split(":") if folder.startswith("/"))
    return frozenset(
        folder
        for folder, programs in PROGRAMS.items()
        if any(program in running or shutil.which(program, path=search) for program in programs)
    )


def _live_proxies(daemons: tuple[Process, ...]) -> Iterator[ProxySetting]:
    for daemon in daemons:
        if daemon.environ is not None:
            source = f"{daemon.name} (process {daemon.pid})"
            yield ProxySetting(source, *_proxy_variables(daemon.environ), daemon.name)


def _proxy_variables(environ: Mapping[str, str]) -> tuple[str, str]:
    proxy = environ.get("HTTPS_PROXY") or environ.get("https_proxy") or ""
    return proxy, environ.get("NO_PROXY") or environ.get("no_proxy") or ""


def drop_ins(scene: Scene, daemon: str) -> list[Path]:
    """The files that add to a daemon's unit."""
    unit = UNITS[daemon]
    folders = [scene.path(f"{place}/systemd/system/{unit}.service.d") for place in ("/etc", "/run")]
    return sorted(file for folder in folders for file in folder.glob("*.conf"))


def _files_proxies(scene: Scene, docker: Mapping[str, Any]) -> Iterator[ProxySetting]:
    for daemon in UNITS:
        for file in drop_ins(scene, daemon):
            try:
                text = file.read_text(errors="replace")
            except OSError:
                continue
            lines = (line for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))
            found = {
                match[1].upper(): match[2] or match[3] or match[4] or ""
                for line in lines
                for match in _VARIABLE.finditer(line)
            }
            if "HTTPS_PROXY" in found:
                yield ProxySetting(str(file), found["HTTPS_PROXY"], found.get("NO_PROXY", ""))
    proxies = docker.get("proxies")
    if isinstance(proxies, dict) and isinstance(proxies.get("https-proxy"), str):
        yield ProxySetting("daemon.json", proxies["https-proxy"], str(proxies.get("no-proxy", "")), "dockerd")


def _shell_proxy(scene: Scene) -> Iterator[ProxySetting]:
    proxy, bypass = _proxy_variables(scene.environ)
    if proxy:
        yield ProxySetting("the environment of this shell", proxy, bypass)


def _end(url: str) -> tuple[str, int]:
    """Host and port of a proxy's or a mirror's URL; "" and 0 where it is none."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        return parts.hostname or "", parts.port or 80
    except ValueError:
        return "", 0


def _addresses(hosts: tuple[str, ...], resolved: Mapping[str, Resolution]) -> tuple[str, ...]:
    found: list[str] = []
    for host in hosts:
        found += [str(ip_address(host))] if is_address(host) else resolved.get(host, Resolution()).addresses
    return tuple(dict.fromkeys(found))


def _guess(
    hosts: tuple[HostsLine, ...], names: set[str], ends: list[str], resolved: Mapping[str, Resolution]
) -> tuple[str, ...]:
    """The cache's addresses, by what leads to it: hosts entries, mirror or proxy, names that share an address."""
    lines = tuple(line.address for line in hosts if names & set(line.names))
    if lines:
        # The address that most names have: a wrong line must not become the cache.
        count = {line: sum(len(names & set(one.names)) for one in hosts if one.address == line) for line in lines}
        most = max(count.values())
        return tuple(dict.fromkeys(address for address in lines if count[address] == most))
    found = _addresses(tuple(filter(None, ends)), resolved)
    if found:
        return found
    hub, quay = (set(resolved.get(name, Resolution()).addresses) for name in (DOCKER_HUB.host, "quay.io"))
    return tuple(sorted(hub & quay))


def _most(mirrors: tuple[Mirror, ...]) -> list[str]:
    """Where mirrors lead for most registries: one for a single registry may be anybody's."""
    hosts = Counter(host for host, *_ in {(each.host, each.client, each.wanted.registry.name) for each in mirrors})
    return [host for host in hosts if hosts[host] == max(hosts.values())]


def _ways(scene: Scene, node: Node, names: set[str]) -> Iterator[Way]:
    led = {address for name in names for address in node.resolved[name].addresses}
    yield from (Way("tls", address, scene.ports["tls"]) for address in node.caches if address in led)
    ends = [("connect", *_end(setting.proxy)) for setting in node.proxies]
    ends += [("mirror", each.host, each.port) for each in node.mirrors]
    for kind, host, port in ends:
        for address in _addresses((host,), node.resolved) if host else ():
            if address in node.caches:
                yield Way("connect" if kind == "connect" else "mirror", address, port)
