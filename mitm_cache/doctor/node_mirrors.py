"""Whether mirrors lead through the cache: what each client would ask there, asked in its own form."""

import ssl
from collections.abc import Iterator, Sequence

from mitm_cache.doctor.finding import Finding, fail
from mitm_cache.doctor.mirror import Mirror
from mitm_cache.doctor.mirror_containers import CLIENT as CONTAINERS
from mitm_cache.doctor.mirrors import DOCKERD
from mitm_cache.doctor.node import Node
from mitm_cache.doctor.node_pulls import ask_with_token, judge
from mitm_cache.doctor.probes import Shown, Straight, Way, at, trusting, verify
from mitm_cache.doctor.scene import Scene
from mitm_cache.upstream.trust import system_store

LINES = {
    DOCKERD: '"registry-mirrors": ["http://{0}"]',
    "containerd": '[host."http://{0}"]',
    CONTAINERS: 'location = "{0}/{1}" and insecure = true in [[registry.mirror]]',
}
"""What leads to the cache, by client; `{0}` is its address and port, `{1}` the registry."""
ENDPOINT = 'endpoint: ["http://{0}"]'


def check_mirror(scene: Scene, node: Node, mirror: Mirror) -> Iterator[Finding]:
    """Ask a mirror as its client would, and look whether the client would believe its certificate."""
    image = f"/{mirror.wanted.image}" if mirror.wanted.image else ""
    name = mirror.wanted.registry.name
    subject = f"{name}{image} by mirror {at(mirror.host, mirror.port)} ({mirror.client})"
    if mirror.url.startswith("https:") and not mirror.insecure:
        shown = _shake(scene, mirror)
        if shown.reached and not shown.believed:
            words = f"{mirror.source}: by its https the client does not believe the mirror ({shown.words})"
            named = (
                "" if shown.code else f'; or names = ["{mirror.host}"] on the cache, which shows no certificate for it'
            )
            yield fail("trust", subject, words, f"{right_line(scene, mirror, (mirror.host,))}{named}")
            return
    reply, silent_host = ask_with_token(Straight(), mirror.url)
    if mirror.insecure and (reply.status or reply.reset) and "x-cache" not in reply.headers:
        # It may want TLS, which the client need not believe.
        by_tls = ask_with_token(Straight(), mirror.url.replace("http:", "https:", 1))
        reply, silent_host = by_tls if by_tls[0].status else (reply, silent_host)
    # A door of the cache has a line of its own; any other address is the file's fault.
    there = node.at_cache(mirror.host)
    known = node.caches if scene.caches or not there else ()
    cure = right_line(scene, mirror, known)
    yield judge(subject, name, reply, silent_host, manifest=bool(image), stranger=cure, closed="" if there else cure)


def right_line(scene: Scene, mirror: Mirror, caches: Sequence[str]) -> str:
    """The line that the file should have, with the address of the first of these caches, where one is known."""
    place = at(caches[0] if caches else "CACHE", scene.ports["mirror"])
    line = LINES.get(mirror.client, ENDPOINT).format(place, mirror.wanted.registry.name)
    restart = f", then systemctl restart {mirror.client}" if mirror.client in ("k3s", "rke2") else ""
    return f"{line} in {mirror.source}{restart}"


def _shake(scene: Scene, mirror: Mirror) -> Shown:
    system = system_store(scene.environ)
    try:
        trust = trusting(*([system] if system else []), *mirror.roots)
    except (OSError, ssl.SSLError) as error:
        return Shown(False, words=f"its CA cannot be read: {error.strerror or error}")
    return verify(Way("mirror", mirror.host, mirror.port), mirror.host, trust)
