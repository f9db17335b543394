"""What a node's files should hold, from what is asked for and what they hold without us. Decides only."""

import posixpath

from mitm_cache.node.containerd import plan_containerd
from mitm_cache.node.containers import plan_containers
from mitm_cache.node.docker import plan_docker
from mitm_cache.node.hosting import plan_hosting
from mitm_cache.node.hosts import plan_hosts
from mitm_cache.node.kind import plan_cluster, plan_node
from mitm_cache.node.model import Draft, Files, Plan, Settings, Store, Target, Way, restart
from mitm_cache.node.proxies import plan_proxy
from mitm_cache.node.rancher import plan_rancher
from mitm_cache.node.services import installed
from mitm_cache.node.trust import plan_store


def plan(settings: Settings, files: Files) -> Plan:
    """The whole plan. `files` are the node's as they would be without an earlier set-up. Raises ConfigError."""
    draft = Draft()
    if settings.way is Way.HOSTS:
        plan_hosts(draft, settings, files)
    if settings.way is Way.CONNECT:
        plan_proxy(draft, settings, files)
    if settings.needs_ca and settings.store is Store.SYSTEM:
        # They read the store once, when they start.
        readers = tuple(restart(service) for service in installed(settings.target, files))
        plan_store(draft, settings, files, readers)
    match settings.target:
        case Target.DOCKER:
            plan_docker(draft, settings, files)
        case Target.CONTAINERD:
            plan_containerd(draft, settings, files)
        case Target.PODMAN | Target.CRIO:
            plan_containers(draft, settings, files)
        case Target.K3S | Target.RKE2 | Target.K3D:
            plan_rancher(draft, settings, files)
            plan_hosting(draft, settings, f"{posixpath.splitext(settings.file)[0]}-hosting.yaml")
        case Target.KIND:
            plan_cluster(draft, settings, files) if settings.file else plan_node(draft, settings, files)
        case Target.HOSTS:
            draft.note("Programs that read the system's CA store once, when they start, need a restart.")
    return draft.plan()
