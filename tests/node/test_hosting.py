"""The registry of one's own in kind and k3d: what its names mean inside, and what tools outside are told (KEP-1755)."""

import tomllib
from typing import Any

import pytest
from ruamel.yaml import YAML

from mitm_cache.errors import ConfigError
from mitm_cache.node.hosting import parse_local
from tests.node.memory import planned, settings

CLUSTER = "/home/u/kind.yaml"
ADMIN = "/etc/kubernetes/admin.conf"
HOSTS = "/etc/containerd/certs.d/localhost:5000/hosts.toml"


def yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def told(text: str) -> dict[str, str]:
    """The fields of the ConfigMap, once it is the one that tools look for."""
    document = yaml(text)
    assert (document["apiVersion"], document["kind"]) == ("v1", "ConfigMap")
    assert document["metadata"] == {"name": "local-registry-hosting", "namespace": "kube-public"}
    assert list(document["data"]) == ["localRegistryHosting.v1"]
    fields: dict[str, str] = yaml(document["data"]["localRegistryHosting.v1"])
    return fields


@pytest.mark.parametrize("text", ["localhost:5000", "localhost", "Registry.LAN", "10.0.0.5:5000", "cache:5000"])
def test_a_name(text: str) -> None:
    assert parse_local(f" {text} ") == text.lower()


@pytest.mark.parametrize("text", ["", "app", "http://localhost:5000", "localhost:5000/app", "localhost:", "a b.c"])
def test_no_name(text: str) -> None:
    """A first part without a dot or a port is one of Docker Hub's."""
    with pytest.raises(ConfigError, match="is not what an image's name begins with"):
        parse_local(text)


def test_a_new_kind_cluster() -> None:
    """The mounted folder leads the name to the cache, and nowhere else where the cache has no such image."""
    texts, made = planned(settings("kind", "mirror", "ca", "cache", file=CLUSTER, local=("localhost:5000",)))
    hosts = tomllib.loads(texts["/home/u/kind-certs.d/localhost:5000/hosts.toml"])
    assert hosts == {"server": "http://cache:5000", "host": {}}
    assert list(tomllib.loads(texts["/home/u/kind-certs.d/_default/hosts.toml"])["host"]) == ["http://cache:5000"]
    assert told(texts["/home/u/kind-hosting.yaml"]) == {
        "host": "localhost:5000",
        "hostFromContainerRuntime": "localhost:5000",
        "help": "http://localhost:5000/",
    }
    assert any("kubectl apply -f /home/u/kind-hosting.yaml" in note for note in made.notes)


def test_two_caches() -> None:
    """The last one is the server, after which containerd asks nobody."""
    texts, _ = planned(settings("kind", "mirror", "ca", "a.lan", "b.lan", file=CLUSTER, local=("localhost:5000",)))
    hosts = tomllib.loads(texts["/home/u/kind-certs.d/localhost:5000/hosts.toml"])
    assert hosts["server"] == "http://b.lan:5000"
    assert list(hosts["host"]) == ["http://a.lan:5000"]


def test_pods_may_push_where_the_cache_has_that_name() -> None:
    """They have no hosts.toml: the cache's address in the cluster must be a name of the registry too."""
    local = ("localhost:5001", "cache:5000")
    texts, _ = planned(settings("kind", "mirror", "ca", "cache", file=CLUSTER, local=local))
    fields = told(texts["/home/u/kind-hosting.yaml"])
    assert fields["host"] == "localhost:5001"
    assert fields["hostFromClusterNetwork"] == "cache:5000"


def test_a_node_that_runs() -> None:
    """Every node has hosts.toml; the ConfigMap is where kubectl may write into the cluster."""
    wanted = settings("kind", "mirror", local=("localhost:5000",), enter="docker exec kind-control-plane")
    texts, made = planned(wanted)
    assert tomllib.loads(texts[HOSTS])["server"] == "http://10.0.0.5:5000"
    assert not any("local-registry-hosting" in text for text in texts.values())
    texts, made = planned(wanted, {ADMIN: ""})
    path = "/etc/kubernetes/local-registry-hosting.yaml"
    assert told(texts[path])["host"] == "localhost:5000"
    command = f"docker exec kind-control-plane kubectl --kubeconfig {ADMIN} apply -f {path}"
    assert any(note.endswith(command) for note in made.notes)


def test_another_registry_has_the_name() -> None:
    """What was set up for another registry by that name is asked first, and not overwritten."""
    there = '[host."http://kind-registry:5000"]\n'
    texts, _ = planned(settings("kind", "mirror", local=("localhost:5000",)), {HOSTS: there})
    hosts = tomllib.loads(texts[HOSTS])
    assert (hosts["server"], list(hosts["host"])) == ("http://10.0.0.5:5000", ["http://kind-registry:5000"])
    with pytest.raises(ConfigError, match=f"{HOSTS} sets server already"):
        planned(
            settings("kind", "mirror", local=("localhost:5000",)), {HOSTS: 'server = "http://other:5000"\n[host]\n'}
        )


def test_k3d() -> None:
    """A mirror of the name's own beside the one for all."""
    there = 'mirrors:\n  "localhost:5000":\n    endpoint: ["http://other:5000"]\n'
    wanted = settings("k3d", "mirror", "ca", "cache", file="/home/u/r.yaml", local=("localhost:5000",))
    texts, made = planned(wanted, {"/home/u/r.yaml": there})
    assert yaml(texts["/home/u/r.yaml"])["mirrors"] == {
        "localhost:5000": {"endpoint": ["http://cache:5000", "http://other:5000"]},
        "*": {"endpoint": ["http://cache:5000"]},
    }
    assert told(texts["/home/u/r-hosting.yaml"])["host"] == "localhost:5000"
    assert not any("has mirrors for" in note for note in made.notes)
    assert planned(wanted, {"/home/u/r.yaml": texts["/home/u/r.yaml"]})[0] == texts


def test_other_nodes_need_no_such_thing() -> None:
    with pytest.raises(ConfigError, match="--local is for kind and k3d"):
        settings("k3s", "mirror", local=("localhost:5000",))
