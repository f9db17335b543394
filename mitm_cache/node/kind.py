"""kind: a cluster's configuration that mounts `certs.d` into each node, for clusters that are made later.

Node images with containerd 2.2 or later, of kind v0.31, read `certs.d` by themselves; the patch names it for others.
"""

import posixpath
from typing import Any

from ruamel.yaml.scalarstring import LiteralScalarString

from mitm_cache.errors import ConfigError
from mitm_cache.node.containerd import (
    CERTIFICATES,
    CONFIG,
    DEFAULT,
    NEW_PLUGIN,
    OLD_PLUGIN,
    host_table,
    local_table,
    plan_folder,
)
from mitm_cache.node.hosting import plan_hosting
from mitm_cache.node.model import Draft, Files, Settings
from mitm_cache.node.rancher import read_yaml, sequence, write_yaml
from mitm_cache.node.tomls import read_toml, table_at

ADMIN, HOSTING = "/etc/kubernetes/admin.conf", "/etc/kubernetes/local-registry-hosting.yaml"
_API = "kind.x-k8s.io/v1alpha4"
# Each containerd knows one of the plugins and passes over the other's settings.
_PATCH = "".join(
    f'[plugins."{plugin}".registry]\n  config_path = "{CERTIFICATES}"\n' for plugin in (OLD_PLUGIN, NEW_PLUGIN)
)


def plan_cluster(draft: Draft, settings: Settings, files: Files) -> None:
    """The configuration file, and beside it the hosts.toml that is mounted."""
    stem = posixpath.splitext(settings.file)[0]
    folder = f"{stem}-certs.d"
    hosts = [line for mirror in settings.mirrors for line in host_table(mirror)]
    draft.put(f"{folder}/{DEFAULT}/hosts.toml", "\n".join(hosts) + "\n")
    for name in settings.local:
        roots, others = local_table(settings.mirrors)
        draft.put(f"{folder}/{name}/hosts.toml", "\n".join([*roots, *(others or ["[host]"])]) + "\n")
    text = files.read(settings.file)
    document = read_yaml(settings.file, text)
    for key, value in (("kind", "Cluster"), ("apiVersion", _API)):
        if document.setdefault(key, value) != value:
            raise ConfigError(f"{settings.file}: {key} is {document[key]!r}, not {value}")
    patches = sequence(settings.file, document, "containerdConfigPatches")
    if not any("config_path" in str(patch) for patch in patches):
        patches.append(LiteralScalarString(_PATCH))
    nodes = sequence(settings.file, document, "nodes")
    if not nodes:
        nodes.append({"role": "control-plane"})
    for node in nodes:
        _mount(settings.file, node, folder)
    draft.put(settings.file, write_yaml(document, text))
    draft.note(f"kind reads it when a cluster is made: kind create cluster --config {settings.file}")
    draft.note("For a cluster that runs: --cluster NAME.")
    plan_hosting(draft, settings, f"{stem}-hosting.yaml")


def _mount(file: str, node: Any, folder: str) -> None:
    if not isinstance(node, dict):
        raise ConfigError(f"{file}: nodes holds something that is not a mapping")
    mounts = sequence(file, node, "extraMounts")
    wanted = {"hostPath": folder, "containerPath": CERTIFICATES, "readOnly": True}
    for mount in mounts:
        if isinstance(mount, dict) and str(mount.get("containerPath", "")).startswith(CERTIFICATES):
            if dict(mount) == wanted:
                return
            raise ConfigError(f"{file} mounts {mount['containerPath']} already: put hosts.toml there by hand")
    mounts.append(wanted)


def plan_node(draft: Draft, settings: Settings, files: Files) -> None:
    """A node that runs: its own files, which containerd reads for each pull."""
    plan_folder(draft, settings, files, CERTIFICATES)
    tables = read_toml(CONFIG, files.read(CONFIG))
    registries = (table_at(tables, ("plugins", plugin, "registry")) for plugin in (OLD_PLUGIN, NEW_PLUGIN))
    if not any(registry.get("config_path") for registry in registries):
        draft.note(f"{CONFIG} names no config_path: containerd before 2.2 (kind before v0.31) does not read this then.")
    # Workers have no right to write it into the cluster.
    if files.read(ADMIN) is not None:
        plan_hosting(draft, settings, HOSTING, f"{settings.enter} kubectl --kubeconfig {ADMIN}".lstrip())
