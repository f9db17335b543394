"""Whether a node finds the cache: the registries' names, and the listeners."""

from collections.abc import Iterable, Iterator

from mitm_cache.doctor.finding import Finding, fail, ok, skip, warn
from mitm_cache.doctor.node import Node, hosts_of
from mitm_cache.doctor.probes import Door, Resolution, at, knock
from mitm_cache.doctor.scene import Scene
from mitm_cache.registries import Registry

WAYS = "set up one way: docs/clients.md"


def check_ways(node: Node) -> Iterator[Finding]:
    """Whether it is known where the cache is, and whether anything here leads to it."""
    if not node.caches:
        cure = "mitm-cache doctor --node --cache ADDRESS, with the cache's address"
        yield fail("cache", "this node", "nothing here leads to a cache: no hosts entry, proxy or mirror", cure)
    elif not node.ways:
        where = ", ".join(node.caches)
        cure = f"mitm-cache example hosts --address {node.caches[0]} | sudo tee -a /etc/hosts"
        yield fail("cache", where, "no hosts entry, proxy or mirror of this node leads there", cure)
    else:
        yield ok("cache", ", ".join(node.caches), f"set up here: {', '.join(dict.fromkeys(w.kind for w in node.ways))}")
    if node.trouble:
        yield fail(
            "cache", str(node.daemon_json), node.trouble, f"put it right: dockerd does not start with it ({WAYS})"
        )
    yield from node.told


def check_name(scene: Scene, node: Node, registry: Registry) -> Iterator[Finding]:
    """Whether a registry's names lead to the cache, and nowhere else."""
    if not node.caches:
        return iter([skip("names", registry.name, "it is not known where the cache is", "--cache ADDRESS")])
    if node.way("tls") is None and _reached_otherwise(node, registry):
        words = "this node reaches it without names, by proxy or mirror"
        return iter([skip("names", registry.name, words, "nothing to do; hosts entries would lead other clients too")])
    return iter([_judge(scene, node, registry)])


def _reached_otherwise(node: Node, registry: Registry) -> bool:
    return node.way("connect") is not None or node.mirrored(registry.name)


def _judge(scene: Scene, node: Node, registry: Registry) -> Finding:
    main, *aliases = hosts_of(registry) or (registry.host,)
    if node.leads_here(main):
        past = [name for name in aliases if not node.leads_here(name)]
        if not past:
            return ok("names", registry.name, f"leads to the cache ({_addresses(node, main)})")
        return warn(
            "names", registry.name, f"{_what_is(node, past[0])}; other names of it lead to the cache", _cure(node, past)
        )
    words = _what_is(node, main)
    if registry.name in scene.asked or any(map(node.leads_here, aliases)) or _mixed(node, main):
        return fail("names", registry.name, words, _cure(node, [main, *(a for a in aliases if not node.leads_here(a))]))
    return warn(
        "names",
        registry.name,
        "does not lead to the cache: it is pulled past it",
        f"mitm-cache example hosts --address {node.caches[0]} | sudo tee -a /etc/hosts",
    )


def _addresses(node: Node, name: str) -> str:
    return ", ".join(node.resolved.get(name, Resolution()).addresses)


def _mixed(node: Node, name: str) -> bool:
    return bool(set(node.resolved.get(name, Resolution()).addresses) & set(node.caches))


def _what_is(node: Node, name: str) -> str:
    """What a name that does not lead to the cache does, and who says so."""
    found = node.resolved.get(name, Resolution(trouble="no such name"))
    if not found.addresses:
        return f"{name} cannot be resolved: {found.trouble}"
    wrong = [address for address in found.addresses if address not in node.caches]
    also = "also " if _mixed(node, name) else ""
    return f"{name} {also}leads to {wrong[0]} ({_source(node, name, wrong[0])}), not to the cache {node.caches[0]}"


def _source(node: Node, name: str, address: str) -> str:
    line = _line(node, name, address)
    return f"/etc/hosts, line {line}" if line else "DNS, by /etc/resolv.conf"


def _line(node: Node, name: str, address: str) -> int:
    return next((line.number for line in node.hosts if line.address == address and name in line.names), 0)


def _cure(node: Node, names: list[str]) -> str:
    cache = node.caches[0]
    for name in names:
        for address in node.resolved.get(name, Resolution()).addresses:
            line = _line(node, name, address)
            if line and address not in node.caches:
                return f"take {name} out of line {line} of /etc/hosts, and add: {cache} {' '.join(names)}"
    if all(_line(node, name, address) for name in names for address in node.caches[:1]):
        return "the hosts entries are there: /etc/nsswitch.conf needs 'hosts: files dns', files first; nscd -i hosts"
    return f"echo '{cache} {' '.join(names)}' | sudo tee -a /etc/hosts"


PURPOSES = {
    "tls": "hosts entries",
    "clear": "insecure-registries",
    "connect": "HTTPS_PROXY",
    "mirror": "mirror settings",
}


def check_door(scene: Scene, node: Node, listener: str) -> Iterator[Finding]:
    """Whether a listener of the cache can be reached from here."""
    usual = [(address, scene.ports[listener]) for address in node.caches]
    for address, port in [(way.address, way.port) for way in node.ways if way.kind == listener] or usual:
        yield judge_door(node, listener, f"{listener} {at(address, port)}", knock(address, port))


def judge_door(node: Node, listener: str, subject: str, door: Door) -> Finding:
    """A listener that this node needs must be open; the others are only told of."""
    if door == "open":
        return ok("doors", subject, "open")
    words, cure = _CLOSED[door]
    if listener in needed(node):
        files = dict.fromkeys(str(each.source) for each in node.mirrors if node.at_cache(each.host))
        named = f" ({', '.join(files)})" if files and listener == "mirror" else ""
        words = f"{words}, and {PURPOSES[listener]} of this node lead there{named}"
        return fail("doors", subject, words, cure.format(listener))
    return skip(
        "doors",
        subject,
        f"{words}; nothing on this node needs it",
        f"for {PURPOSES[listener]}: {cure}".format(listener),
    )


def needed(node: Node) -> frozenset[str]:
    """The listeners that the settings of this node lead to."""
    kinds: Iterable[str] = (way.kind for way in node.ways)
    return frozenset(kinds)


_CLOSED: dict[Door, tuple[str, str]] = {
    "refused": (
        "the connection is refused: nobody listens there",
        "on the cache host: mitm-cache doctor --host; listen.{0}, or systemctl start mitm-cache",
    ),
    "silent": (
        "no answer within 3 s: a firewall drops it, or the address is no host's",
        "on the cache host: mitm-cache doctor --host; open the port of listen.{0} in the firewalls between",
    ),
    "rejected": (
        "rejected on the way: a firewall, or no such host in that network",
        "let the firewalls between accept the port of listen.{0}; ip neigh",
    ),
    "unreachable": ("there is no route to it", "ip route get ADDRESS; ping ADDRESS"),
}
