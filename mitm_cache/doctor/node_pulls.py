"""Whether a pull comes through: a real HEAD of a manifest by names and by proxy, and what an answer tells."""

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from mitm_cache.ca import BACKDATED, LEAF_LIFETIME, LEAF_RENEWAL
from mitm_cache.doctor.finding import Finding, fail, ok, skip, warn
from mitm_cache.doctor.node import Node, hosts_of
from mitm_cache.doctor.node_trust import CLOCK
from mitm_cache.doctor.probes import ACCEPT, Reply, Straight, Way, ask, at, fetch_token
from mitm_cache.doctor.scene import Scene, Wanted, target

TOLERATED = 300.0
"""Seconds of difference that no token and no certificate minds."""


def check_pull(node: Node, wanted: Wanted, way: Way) -> Iterator[Finding]:
    """Ask for a manifest as a client without credentials does, its token included."""
    registry = wanted.registry
    subject = f"{registry.name}{f'/{wanted.image}' if wanted.image else ''} by {way}"
    host = next(iter(hosts_of(registry)), registry.host)
    if way.kind == "tls" and not node.leads_here(host):
        yield skip("pulls", subject, "its name does not lead to the cache", "see its line (names)")
        return
    reply, silent_host = ask_with_token(way, f"https://{host}{target(wanted)}")
    yield judge(subject, registry.name, reply, silent_host, manifest=bool(wanted.image))


def ask_with_token(way: Way | Straight, url: str) -> tuple[Reply, str]:
    """The answer, with a token if one is asked for; and the token host that gave none, or ""."""
    reply = ask(way, "HEAD", url, {"Accept": ACCEPT})
    if reply.status != 401:
        return reply, ""
    # The node's own way first, as a client; a proxy is its own way.
    ways = (way,) if isinstance(way, Way) and way.kind == "connect" else (Straight(),)
    token, silent_host = fetch_token(ways, reply.headers.get("www-authenticate", ""))
    if not token:
        return reply, silent_host
    return ask(way, "HEAD", url, {"Accept": ACCEPT, "Authorization": f"Bearer {token}"}), ""


def judge(
    subject: str,
    registry: str,
    reply: Reply,
    silent_host: str,
    *,
    manifest: bool = True,
    stranger: str = "the address must be the cache's: see its lines (names, proxy)",
    closed: str = "",
) -> Finding:
    """What an answer to a HEAD tells of the way.

    `stranger` is the cure where something else answers, `closed` where nobody does and it is not the cache's address.
    """
    outcome, reason = reply.headers.get("x-cache"), reply.headers.get("x-cache-reason", "")
    on_cache_host = f"on the cache host: mitm-cache doctor --host --registry {registry}"
    if reply.trouble and closed:
        return fail("pulls", subject, f"{reply.trouble}, and the address is not the cache's", closed)
    if reply.trouble:
        cure = "clients.allow on the cache must hold this node's address" if reply.reset else "see the listener (doors)"
        return fail("pulls", subject, reply.trouble, f"{cure}; {on_cache_host}")
    if outcome is None:
        words = f"status {reply.status} without X-Cache: it did not come through the cache"
        return fail("pulls", subject, words, stranger)
    told = f"status {reply.status}, X-Cache {outcome}{f' ({reason})' if reason else ''}"
    if reply.status >= 500:
        return fail("pulls", subject, told, on_cache_host)
    if silent_host:
        hosts = "mitm-cache example hosts --no-egress --address CACHE | sudo tee -a /etc/hosts"
        words = f"{told}, and the token host {silent_host} gives no token"
        return fail("pulls", subject, words, f"a route to {silent_host}; or {hosts}")
    if not manifest:
        return ok("pulls", subject, told)
    return _judge_manifest(subject, registry, reply, told)


def _judge_manifest(subject: str, registry: str, reply: Reply, told: str) -> Finding:
    digest = reply.headers.get("docker-content-digest")
    if reply.status == 401:
        cure = f"docker login {registry} (or podman login), then pull; or --registry with a public image"
        return warn("pulls", subject, f"{told}: through the cache, and it wants a login", cure)
    if reply.status != 200:
        return warn("pulls", subject, told, f"name an image that is there: --registry {registry}/REPOSITORY:TAG")
    if not digest:
        cure = "look at the registry: clients want it by HEAD"
        return warn("pulls", subject, f"{told}, without Docker-Content-Digest", cure)
    return ok("pulls", subject, f"{told}, {digest[:19]}…")


def check_clock(scene: Scene, node: Node) -> Iterator[Finding]:
    """The clock of this node against the Date of an answer from the cache."""
    for way in node.ways:
        names = [
            name for one in scene.registries for name in hosts_of(one)[:1] if way.kind != "tls" or node.leads_here(name)
        ]
        if not names:
            continue
        url = f"http://{at(way.address, way.port)}/v2/" if way.kind == "mirror" else f"https://{names[0]}/v2/"
        reply = ask(way, "HEAD", url)
        if reply.status:
            yield judge_clock(str(way), reply.headers.get("date", ""), scene.now())
            return
    yield skip("clock", "this node", "the cache gave no answer to compare with", "see the lines of doors and pulls")


def judge_clock(subject: str, date: str, now: float) -> Finding:
    """A leaf is valid from a day before it was made, and made anew two days before it ends."""
    try:
        ahead = now - parsedate_to_datetime(date).timestamp()
    except ValueError:
        words = f"its answer has no Date; the clock here says {datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M}Z"
        return skip("clock", subject, words, "compare with `date -u` on the cache host")
    side = "ahead of" if ahead > 0 else "behind"
    words = f"the clock of this node is {abs(ahead):,.0f} s {side} the cache's"
    if ahead < -BACKDATED.total_seconds() or ahead > (LEAF_LIFETIME - LEAF_RENEWAL).total_seconds():
        return fail("clock", subject, f"{words}: certificates are not valid by it", CLOCK)
    if abs(ahead) > TOLERATED:
        return warn("clock", subject, f"{words}: tokens end early or late", CLOCK)
    return ok("clock", subject, "the clocks of this node and of the cache agree")
