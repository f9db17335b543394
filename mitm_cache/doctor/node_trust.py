"""Whether the clients of a node believe the certificates that the cache shows."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

from mitm_cache.doctor.finding import Finding, fail, ok, skip, warn
from mitm_cache.doctor.mirrors import DOCKERD
from mitm_cache.doctor.node import Node, hosts_of, own_trust
from mitm_cache.doctor.probes import Shown, Way, at, trusting, verify
from mitm_cache.doctor.scene import Scene
from mitm_cache.registries import DOCKER_HUB, Registry
from mitm_cache.upstream.trust import system_store

_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_… of OpenSSL
CLOCK = "timedatectl set-ntp true (or chronyc makestep), here and on the cache host"
RESTART = {"docker": "systemctl restart docker", "containerd": "systemctl restart containerd", "containers": ""}
OWN_PLACE = {
    "docker": "/etc/docker/certs.d/{0}/ca.crt",
    "containers": "/etc/containers/certs.d/{0}/ca.crt",
    "containerd": 'ca = "FILE" in /etc/containerd/certs.d/{0}/hosts.toml',
}


def check_trust(scene: Scene, node: Node, registry: Registry) -> Iterator[Finding]:
    """Shakes hands for a registry as each client of this node would."""
    way = _way(node, registry)
    host = next(iter(hosts_of(registry)), "")
    if way is None or not host:
        cure = "nothing to do; the certificate is of interest where hosts entries or HTTPS_PROXY lead to the cache"
        yield skip("trust", registry.name, "no TLS of this node leads through the cache for it", cure)
        return
    system = system_store(scene.environ)
    shown = verify(way, host, trusting(*([system] if system else [])))
    given = verify(way, host, trusting(scene.ca)) if scene.ca and not shown.believed else None
    yield from judge(scene, node, registry, shown, given, lambda client: _own(scene, client, registry, way, host))


def _way(node: Node, registry: Registry) -> Way | None:
    if any(map(node.leads_here, hosts_of(registry))):
        return node.way("tls")
    return node.way("connect")


def _own(scene: Scene, client: str, registry: Registry, way: Way, host: str) -> tuple[Shown | None, str]:
    """The handshake by a client's own folder alone, None where there is none; and the file that says not to verify."""
    trust = own_trust(scene, client, registry)
    if not trust.files:
        return None, trust.unverified
    try:
        return verify(way, host, trusting(*trust.files)), trust.unverified
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it holds no PEM certificate"
        return Shown(False, words=f"{trust.files[0]}: {reason}"), trust.unverified


def judge(
    scene: Scene,
    node: Node,
    registry: Registry,
    shown: Shown,
    given: Shown | None,
    own: Callable[[str], tuple[Shown | None, str]],
) -> Iterator[Finding]:
    """`shown` by the system store, `given` by --ca, `own` by a client's own place."""
    name = registry.name
    if not shown.reached:
        yield skip("trust", name, f"no handshake: {shown.words}", "see the line of the listener (doors)")
    elif shown.believed:
        yield ok("trust", name, "the certificate is believed by the system store, which all clients read")
    elif shown.code in (_NOT_YET_VALID, _EXPIRED) or (given and given.code in (_NOT_YET_VALID, _EXPIRED)):
        words = f"by the clock of this node the certificate is not valid ({(given or shown).words})"
        yield fail("clock", name, words, CLOCK)
    elif not shown.code:
        cure = f'on the cache host: a table [registries."{name}"], mitm-cache ca init --force; mitm-cache doctor --host'
        yield fail("trust", name, f"the cache shows no certificate for it ({shown.words})", cure)
    elif given is not None and not given.believed:
        cure = _install(None)
        yield fail("trust", name, f"the cache shows a certificate of another CA than {scene.ca} ({given.words})", cure)
    elif not node.clients:
        yield fail("trust", name, f"the system store does not believe it ({shown.words})", _install(scene.ca))
    else:
        for client in sorted(node.clients):
            yield _judge_client(scene, node, registry, client, shown, *own(client))


def _judge_client(
    scene: Scene, node: Node, registry: Registry, client: str, shown: Shown, own: Shown | None, unverified: str
) -> Finding:
    name, who = registry.name, _CALLED[client]
    system = f"{who}: the system store does not believe the certificate ({shown.words})"
    install = _install(scene.ca, client)
    if client == "docker" and name == DOCKER_HUB.name:
        if node.mirrored(name, DOCKERD):
            return ok("trust", name, f"{who}: by the mirror, where no certificate is asked for")
        words = f"{system}; dockerd reads neither certs.d nor insecure-registries for Docker Hub"
        url = f"http://{at(node.caches[0], scene.ports['mirror'])}"
        return fail("trust", name, words, f'{install}; or "registry-mirrors": ["{url}"] in {node.daemon_json}')
    if own is not None and own.believed:
        return ok("trust", name, f"{who}: the certificate is believed by its own folder")
    if unverified:
        return warn("trust", name, f"{who}: {unverified} says skip_verify", f"{install}; then take skip_verify out")
    if client == "docker" and node.insecure & set(registry.names):
        cure = f"{install}; then take it out of insecure-registries in {node.daemon_json}"
        return warn("trust", name, f"{who} has it as insecure and does not verify", cure)
    # What was not asked for is told of together.
    cure = f"{install}; or {OWN_PLACE[client].format(name if name in scene.asked else 'REGISTRY')}"
    if own is not None:
        return fail("trust", name, f"{system}, and its own folder has another CA ({own.words})", cure)
    return fail("trust", name, system, cure)


_CALLED = {"docker": "dockerd", "containers": "podman and skopeo", "containerd": "containerd"}


def _install(ca: Path | None, client: str = "") -> str:
    export = "" if ca else "on the cache host: mitm-cache ca export > ca.crt; here: "
    restart = RESTART.get(client, "")
    return f"{export}sudo sh install-ca.sh {ca or 'ca.crt'}{f' && {restart}' if restart else ''}"
