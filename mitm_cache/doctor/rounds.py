"""Which checks there are on a node and on a cache host, and which of the two this machine is."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from mitm_cache.config import Config
from mitm_cache.doctor import (
    host_disk,
    host_local,
    host_upstream,
    node_daemons,
    node_mirrors,
    node_names,
    node_pulls,
    node_trust,
    service,
)
from mitm_cache.doctor.examination import Check, examine, within
from mitm_cache.doctor.finding import Finding, fail, ok
from mitm_cache.doctor.node import Node
from mitm_cache.doctor.node import look as look_at_node
from mitm_cache.doctor.scene import SECONDS, USUAL, Scene
from mitm_cache.errors import ConfigError
from mitm_cache.upstream.route import LIFETIME

DOCUMENTED = "docs/configuration.md has every key"


def visit(scene: Scene, *, node: bool, host: bool, patience: float = 2 * SECONDS) -> list[Finding]:
    """Look at this machine as a node, as a cache host, or as what it is where neither is named.

    `patience`: seconds for reading what a node is set up with.
    """
    config, trouble = _load(scene)
    found_out = not node and not host
    facts, findings = _read_node(scene, patience) if node or found_out else (None, [])
    running = service.look(config) if config and (host or found_out) else None
    if found_out:
        host = _is_host(config, running)
        node = bool(facts and facts.ways) or bool(scene.caches) or not host
    checks: list[Check] = []
    with ExitStack() as stack:
        if host and (config is None or running is None):
            cure = f"put the key right in {scene.file}; {DOCUMENTED}"
            findings.append(fail("configuration", str(scene.file), trouble, cure))
        elif host and config and running:
            told = "loads" if scene.file.exists() else "is not there: every key has its default"
            findings.append(ok("configuration", str(scene.file), told))
            shared = host_upstream.Shared(scene, config, running)
            stack.callback(shared.close)
            checks += _of_host(scene, config, running, shared)
        if node and facts:
            checks += _of_node(scene, facts)
        # A name takes its whole time to be not resolved, and its own words are better than ours.
        return findings + examine(checks, seconds=LIFETIME + 1 if host else SECONDS)


def _read_node(scene: Scene, patience: float) -> tuple[Node | None, list[Finding]]:
    """What is set up on this machine as a node; a finding in its place where that cannot be read, or not in time."""
    read: list[Node] = []

    def run() -> Iterator[Finding]:
        read.append(look_at_node(scene))
        yield ok("cache", "this node", "what is set up has been read")

    findings = examine([Check("cache", "this node", run)], seconds=patience)
    return (read[0], []) if read else (None, findings)


def _load(scene: Scene) -> tuple[Config | None, str]:
    try:
        return scene.config(), ""
    except ConfigError as error:
        return None, error.message


def _is_host(config: Config | None, running: service.Service | None) -> bool:
    """There is a data directory or a service; what cannot be loaded was written for one."""
    if config is None or running is None:
        return True
    return running.running or within(partial(_has_format, config), default=True)


def _has_format(config: Config) -> bool:
    try:
        return (config.data_dir / "FORMAT").exists()
    except PermissionError:
        return True


def _of_node(scene: Scene, node: Node) -> Iterator[Check]:
    yield Check("cache", "this node", partial(node_names.check_ways, node))
    for registry in scene.registries:
        yield Check("names", registry.name, partial(node_names.check_name, scene, node, registry))
    if not node.caches:
        return
    late = "the cache or what is between is slow: mitm-cache doctor --host on the cache host"
    for name in node_names.PURPOSES:
        yield Check("doors", name, partial(node_names.check_door, scene, node, name), late)
    for registry in scene.registries:
        run = partial(node_trust.check_trust, scene, node, registry)
        yield Check("trust", registry.name, run, late)
    yield Check("daemons", "this node", partial(node_daemons.check_freshness, scene, node))
    yield Check("proxy", "this node", partial(node_daemons.check_proxies, scene, node))
    yield Check("clock", "this node", partial(node_pulls.check_clock, scene, node), late)
    for wanted in scene.images():
        for way in (way for way in node.ways if way.kind != "mirror"):
            run = partial(node_pulls.check_pull, node, wanted, way)
            yield Check("pulls", f"{wanted.registry.name} by {way}", run, late)

    images = scene.images()
    for mirror in (mirror for mirror in node.mirrors if mirror.wanted in images):
        run = partial(node_mirrors.check_mirror, scene, node, mirror)
        yield Check("pulls", f"{mirror.wanted.registry.name} by the mirror of {mirror.client}", run, late)


def _of_host(scene: Scene, config: Config, running: service.Service, shared: host_upstream.Shared) -> Iterator[Check]:
    disk = "the disk hangs: dmesg, mount"
    yield Check("service", "listen.admin", partial(service.check_service, running))
    yield Check("files", "open files", partial(service.check_files, scene, running))
    yield Check("ports", "listen", partial(service.check_ports, scene, config, running))
    yield Check("data", str(config.data_dir), partial(host_disk.check_data, scene, config, running), disk)
    yield Check("disk", str(config.data_dir), partial(host_disk.check_disk, config, running), disk)
    yield Check("ca", str(config.ca_dir), partial(host_disk.check_ca, scene, config, running), disk)
    if config.local.names:
        yield from _of_local(scene, config, running)
    usual = [one for one in config.known if one.name in USUAL or one.name in config.upstreams]
    for registry in [each.registry for each in scene.wanted] or usual:
        run = partial(host_upstream.check_registry, scene, shared, registry)
        late = f"upstream.resolvers; curl -v https://{registry.host}/v2/ from here; the firewall"
        yield Check("upstream", registry.name, run, late, strict=registry.name in scene.asked)


def _of_local(scene: Scene, config: Config, running: service.Service) -> Iterator[Check]:
    for name in config.local.names:
        if "/" not in name:
            late = "what is behind this name is slow, or none of this cache's: DNS, /etc/hosts, the firewall"
            yield Check("local", name, partial(host_local.check_name, config, running, name), late)
    yield Check("local", "certificate", partial(host_local.check_certificate, scene, config, running))
    disk = "the disk hangs: dmesg, mount"
    yield Check("local", "local.max_size", partial(host_local.check_room, config, running), disk)
    if config.local.daemon:
        run = partial(host_local.check_daemon, scene, config, running)
        yield Check("local", config.local.daemon, run, "it takes connections and says nothing: restart the daemon")
