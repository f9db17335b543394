"""podman and CRI-O, k3s and its kin, kind, and proxies."""

import tomllib
from typing import Any

import pytest
from ruamel.yaml import YAML

from mitm_cache.errors import ConfigError
from mitm_cache.node.model import Store
from mitm_cache.registries import Known, Registry
from tests.node.memory import CA, planned, settings, steps

CONF = "/etc/containers/registries.conf"
OURS = f"{CONF}.d/mitm-cache.conf"
K3S = "/etc/rancher/k3s/registries.yaml"


def yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


# podman and CRI-O.


def test_a_table_for_each_registry() -> None:
    """Each name leads to each cache, under the registry's own name; the mirror listener has no TLS."""
    texts, made = planned(settings("podman", "mirror", "ca", "10.0.0.5", "[fd00::1]:5001"))
    tables = {one["location"]: one["mirror"] for one in tomllib.loads(texts[OURS])["registry"]}
    assert tables["k8s.gcr.io"] == [
        {"location": "10.0.0.5:5000/registry.k8s.io", "insecure": True},
        {"location": "[fd00::1]:5001/registry.k8s.io", "insecure": True},
    ]
    assert {"docker.io", "quay.io", "ghcr.io"} <= tables.keys()
    assert steps(made) == set()
    assert steps(planned(settings("crio", "mirror"))[1]) == {"systemctl reload crio"}


def test_a_registry_with_a_port() -> None:
    """A path cannot hold a port: such a registry needs a prefix of its own."""
    known = Known([Registry("r.example:5000", "r.example:5000"), Registry("s.lan:1", "s.lan:1", prefix="s")])
    texts, made = planned(settings("podman", "mirror", known=known))
    (table,) = tomllib.loads(texts[OURS])["registry"]
    assert table["location"] == "s.lan:1"
    assert table["mirror"][0]["location"] == "10.0.0.5:5000/s"
    assert any("r.example:5000 goes past the cache" in note for note in made.notes)


def test_tables_of_others_stay() -> None:
    """A second table for a prefix would replace the first one whole."""
    there = '[[registry]]\nprefix = "quay.io"\nlocation = "other.example"\n'
    texts, made = planned(settings("podman", "mirror"), {CONF: there})
    assert "quay.io" not in {one["location"] for one in tomllib.loads(texts[OURS])["registry"]}
    assert any("quay.io goes past the cache" in note for note in made.notes)


def test_what_is_no_table() -> None:
    """podman says what is wrong with such a file; it keeps nobody from setting the node up."""
    texts, _ = planned(settings("podman", "mirror"), {CONF: 'registry = ["quay.io"]\n'})
    assert "quay.io" in {one["location"] for one in tomllib.loads(texts[OURS])["registry"]}


def test_the_old_form_cannot_be_mixed() -> None:
    with pytest.raises(ConfigError, match="of the old form"):
        planned(settings("podman", "mirror"), {CONF: '[registries.search]\nregistries = ["docker.io"]\n'})


def test_unverified_registries() -> None:
    texts, _ = planned(settings("podman", "hosts", "insecure"))
    assert {"location": "quay.io", "insecure": True} in tomllib.loads(texts[OURS])["registry"]


def test_certificates_of_podmans_own() -> None:
    texts, _ = planned(settings("podman", store=Store.CLIENT))
    assert texts["/etc/containers/certs.d/docker.io/mitm-cache.crt"] == CA.pem
    assert OURS not in texts


# k3s, RKE2 and k3d.


RANCHER = """# kept
mirrors:
  docker.io:
    endpoint:
      - "https://m.example"  # kept too
configs:
  "r.example":
    auth:
      username: u
      password: p
"""


def test_mirrors_for_all() -> None:
    texts, made = planned(settings("k3s", "mirror", "ca", "10.0.0.5", "cache.lan:5001"), {K3S: RANCHER})
    document = yaml(texts[K3S])
    assert document["mirrors"]["*"] == {"endpoint": ["http://10.0.0.5:5000", "http://cache.lan:5001"]}
    del document["mirrors"]["*"]
    assert document == yaml(RANCHER)
    assert "# kept\n" in texts[K3S]
    assert "# kept too" in texts[K3S]
    assert any("docker.io" in note for note in made.notes)
    assert steps(made) == {"systemctl restart k3s"}
    assert planned(settings("k3s", "mirror", "ca", "10.0.0.5", "cache.lan:5001"), {K3S: texts[K3S]})[0] == texts


@pytest.mark.parametrize("text", ["", "# only words\n", "mirrors:\n"])
def test_an_empty_file(text: str) -> None:
    texts, _ = planned(settings("k3s", "mirror"), {K3S: text})
    assert yaml(texts[K3S]) == {"mirrors": {"*": {"endpoint": ["http://10.0.0.5:5000"]}}}
    assert text.rstrip("\n") in texts[K3S]


@pytest.mark.parametrize(
    "text",
    [
        "- a\n",
        "a: [",
        "mirrors: x\n",
        "mirrors:\n  '*':\n    endpoint: x\n",
        "a: 1\na: 2\n",
        "a: !!set x\n",
        "mirrors:\n  ?  e: [x]\n  d: 1\n",
    ],
)
def test_a_file_of_another_form(text: str) -> None:
    with pytest.raises(ConfigError, match=K3S):
        planned(settings("k3s", "mirror"), {K3S: text})


def test_the_installed_service_is_restarted() -> None:
    files = {"/etc/systemd/system/k3s-agent.service": ""}
    assert steps(planned(settings("k3s", "mirror"), files)[1]) == {"systemctl restart k3s-agent"}
    assert "/etc/rancher/rke2/registries.yaml" in planned(settings("rke2", "mirror"))[0]


def test_trust_by_name() -> None:
    texts, _ = planned(settings("k3s", store=Store.CLIENT))
    path = "/etc/mitm-cache-setup/ca.crt"
    assert yaml(texts[K3S])["configs"]["quay.io"] == {"tls": {"ca_file": path}}
    assert texts[path] == CA.pem
    texts, _ = planned(settings("k3s", "hosts", "insecure"))
    assert yaml(texts[K3S])["configs"]["quay.io"] == {"tls": {"insecure_skip_verify": True}}
    assert K3S not in planned(settings("k3s"))[0]


def test_k3d_has_a_file_of_its_own() -> None:
    texts, made = planned(settings("k3d", "mirror", file="/home/u/r.yaml"))
    assert set(texts) == {"/home/u/r.yaml"}
    assert any("--registry-config /home/u/r.yaml" in note for note in made.notes)
    assert steps(made) == set()


# kind.


KIND = """kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking:
  ipFamily: dual  # kept
nodes:
- role: control-plane
- role: worker
  extraMounts:
  - hostPath: /data
    containerPath: /data
"""
CLUSTER = "/home/u/kind.yaml"


@pytest.mark.parametrize("there", [{}, {CLUSTER: KIND}], ids=["new file", "extended"])
def test_a_new_cluster(there: dict[str, str]) -> None:
    """Each node mounts the folder with hosts.toml, and its containerd of either version reads it."""
    texts, made = planned(settings("kind", "mirror", file=CLUSTER), there)
    document = yaml(texts[CLUSTER])
    mount = {"hostPath": "/home/u/kind-certs.d", "containerPath": "/etc/containerd/certs.d", "readOnly": True}
    assert all(node["extraMounts"][-1] == mount for node in document["nodes"])
    patch = tomllib.loads(document["containerdConfigPatches"][0])["plugins"]
    for plugin in ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"):
        assert patch[plugin]["registry"]["config_path"] == "/etc/containerd/certs.d"
    hosts = tomllib.loads(texts["/home/u/kind-certs.d/_default/hosts.toml"])
    assert list(hosts["host"]) == ["http://10.0.0.5:5000"]
    assert any(f"--config {CLUSTER}" in note for note in made.notes)
    assert planned(settings("kind", "mirror", file=CLUSTER), {CLUSTER: texts[CLUSTER]})[0] == texts


def test_a_cluster_keeps_what_it_has() -> None:
    texts, _ = planned(settings("kind", "mirror", file=CLUSTER), {CLUSTER: KIND})
    assert "# kept" in texts[CLUSTER]
    first, second = yaml(texts[CLUSTER])["nodes"]
    assert first["role"] == "control-plane"
    assert second["extraMounts"][0] == {"hostPath": "/data", "containerPath": "/data"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: Pod\n", "kind is 'Pod', not Cluster"),
        ("nodes: [x]\n", "not a mapping"),
        ("nodes:\n- extraMounts:\n  - containerPath: /etc/containerd/certs.d\n", "mounts /etc/containerd/certs.d"),
    ],
)
def test_a_cluster_of_another_form(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        planned(settings("kind", "mirror", file=CLUSTER), {CLUSTER: text})


# Proxies.


DROP_IN = "/etc/systemd/system/{}.service.d/mitm-cache.conf"


def test_a_drop_in() -> None:
    """What is inside is reached without the cache: the cluster's networks and names, and the cache itself."""
    texts, made = planned(settings("containerd", "connect", "ca", "cache.lan:8080", no_proxy=("r.lan",)))
    lines = texts[DROP_IN.format("containerd")].splitlines()
    assert lines[:2] == ["[Service]", 'Environment="HTTPS_PROXY=http://cache.lan:8080"']
    past = lines[2].removeprefix('Environment="NO_PROXY=').removesuffix('"').split(",")
    assert {"localhost", "10.0.0.0/8", ".svc", ".cluster.local", "cache.lan", "r.lan"} <= set(past)
    assert {"systemctl daemon-reload", "systemctl restart containerd"} <= steps(made)


def test_k3s_hands_the_proxy_to_containerd_alone() -> None:
    files = {"/etc/systemd/system/k3s-agent.service": ""}
    texts, _ = planned(settings("k3s", "connect"), files)
    assert 'Environment="CONTAINERD_HTTPS_PROXY=http://10.0.0.5:3128"' in texts[DROP_IN.format("k3s-agent")]
    assert DROP_IN.format("k3s") not in texts


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/systemd/system/docker.service.d/http-proxy.conf", '[Service]\nEnvironment="HTTPS_PROXY=http://p:1"\n'),
        ("/etc/systemd/system/docker.service", 'Environment=A=b "https_proxy=http://p:1"\n'),
        ("/etc/default/docker", "export https_proxy = http://p:1\n"),
    ],
)
def test_a_proxy_that_is_there_is_not_replaced(path: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{path} sets (?i:https_proxy) already"):
        planned(settings("docker", "connect"), {path: text})


def test_podman_has_no_daemon() -> None:
    """It takes the list of the last file alone, so ours repeats what was set."""
    path = "/etc/containers/containers.conf.d/mitm-cache.conf"
    there = {"/etc/containers/containers.conf": '[engine]\nenv = ["A=b"]\n'}
    texts, _ = planned(settings("podman", "connect"), there)
    env = tomllib.loads(texts[path])["engine"]["env"]
    assert env[:2] == ["A=b", "HTTPS_PROXY=http://10.0.0.5:3128"]
    with pytest.raises(ConfigError, match="already"):
        planned(settings("podman", "connect"), {next(iter(there)): '[engine]\nenv = ["https_proxy=x"]\n'})
