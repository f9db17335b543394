"""The registry of one's own in a cluster on this machine: what tools that build and push are told of it, by KEP-1755.

https://github.com/kubernetes/enhancements/tree/master/keps/sig-cluster-lifecycle/generic/1755-communicating-a-local-registry
"""

import json
import re

from ruamel.yaml.scalarstring import LiteralScalarString

from mitm_cache.errors import ConfigError
from mitm_cache.node.model import Draft, Settings
from mitm_cache.node.rancher import read_yaml, write_yaml

NAME, NAMESPACE, KEY = "local-registry-hosting", "kube-public", "localRegistryHosting.v1"
REMOVE = f"kubectl delete configmap -n {NAMESPACE} {NAME}"
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?")


def parse_local(text: str) -> str:
    """A name of the local registry as image names begin with it. Raises ConfigError."""
    name = text.strip().lower()
    # Without a dot or a port docker takes it for a part of Docker Hub's.
    if not _HOST.fullmatch(name) or not (name.partition(":")[0] == "localhost" or {".", ":"} & set(name)):
        raise ConfigError(
            f"--local {text!r} is not what an image's name begins with: HOST:PORT or HOST, such as localhost:5000"
        )
    return name


def plan_hosting(draft: Draft, settings: Settings, path: str, kubectl: str = "kubectl") -> None:
    """The ConfigMap as a file, and how the reader applies it; nothing where no name is told of."""
    if not settings.local:
        return
    host = settings.local[0]
    fields = {"host": host, "hostFromContainerRuntime": host}
    # Pods have no hosts.toml: for them it must have the name that they reach it by.
    if inside := next((mirror for mirror in settings.mirrors if mirror in settings.local), ""):
        fields["hostFromClusterNetwork"] = inside
    fields["help"] = f"http://{host}/"
    document = read_yaml(path, None)
    document["apiVersion"], document["kind"] = "v1", "ConfigMap"
    document["metadata"] = {"name": NAME, "namespace": NAMESPACE}
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items())
    document["data"] = {KEY: LiteralScalarString(lines)}
    draft.put(path, write_yaml(document, None))
    draft.note(f"So that Tilt, Skaffold and others are told of the registry: {kubectl} apply -f {path}")
    draft.note(f"--undo leaves that in the cluster: {REMOVE}")
