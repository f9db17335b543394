"""containerd's config.toml of both versions, and its hosts.toml files."""

import tomllib

import pytest

from mitm_cache.errors import ConfigError
from mitm_cache.node.containerd import CONFIG
from mitm_cache.node.model import Store
from tests.node.memory import CA, planned, settings, steps

OLD, NEW = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"
CERTS = "/etc/containerd/certs.d"

DEBIAN = """version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
"""
# As `containerd config default` writes it, with the parts that matter here.
DEFAULT_1 = """disabled_plugins = []
imports = []
version = 2

[plugins]

  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.6"

    [plugins."io.containerd.grpc.v1.cri".registry]
      config_path = ""

      [plugins."io.containerd.grpc.v1.cri".registry.auths]

      [plugins."io.containerd.grpc.v1.cri".registry.configs]

      [plugins."io.containerd.grpc.v1.cri".registry.mirrors]

    [plugins."io.containerd.grpc.v1.cri".x509_key_pair_streaming]
      tls_cert_file = ""
"""
DEFAULT_2 = """version = 3
root = '/var/lib/containerd'
imports = ['/etc/containerd/conf.d/*.toml']

[plugins]
  [plugins.'io.containerd.cri.v1.images']
    snapshotter = 'overlayfs'

    [plugins.'io.containerd.cri.v1.images'.pinned_images]
      sandbox = 'registry.k8s.io/pause:3.10'

    [plugins.'io.containerd.cri.v1.images'.registry]
      config_path = ''

    [plugins.'io.containerd.cri.v1.images'.image_decryption]
      key_model = 'node'
"""
# containerd 2.3.
DEFAULT_4 = DEFAULT_2.replace("version = 3", "version = 4")
GPU = """version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
  runtime_type = "io.containerd.runc.v2"
"""
DOCKERS = '#   Copyright\ndisabled_plugins = ["cri"]\n#root = "/var/lib/containerd"\n'
OLD_MIRRORS = """version = 2
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
  endpoint = ["https://mirror.gcr.io"]
"""
OLD_TLS = """version = 2
[plugins."io.containerd.grpc.v1.cri".registry.configs."r.example".tls]
  insecure_skip_verify = true
"""
OLD_AUTH = """version = 2
[plugins."io.containerd.grpc.v1.cri".registry.configs."r.example".auth]
  username = "u"
"""


def config_path(text: str, plugin: str) -> str:
    return str(tomllib.loads(text)["plugins"][plugin]["registry"]["config_path"])


def without(text: str, plugin: str) -> object:
    """The document without the key, and without tables that hold nothing else."""
    document = tomllib.loads(text)
    tables = [document]
    for name in ("plugins", plugin, "registry"):
        tables.append(tables[-1].get(name, {}))
    tables[-1].pop("config_path", None)
    for table, name in zip(tables[-2::-1], ("registry", plugin, "plugins"), strict=True):
        if not table.get(name, True):
            del table[name]
    return document


@pytest.mark.parametrize(
    ("text", "plugin"),
    [(DEBIAN, OLD), (DEFAULT_1, OLD), (DEFAULT_2, NEW), (DEFAULT_4, NEW), (GPU, OLD), (OLD_AUTH, OLD),
     ("version = 2", OLD), ("version = 3\n", NEW), (DEFAULT_1.replace("\n", "\r\n"), OLD)],
    ids=["debian", "default 1.x", "default 2.x", "default 2.3", "gpu", "auth", "2", "3", "crlf"],
)  # fmt: skip
def test_config_path_is_set(text: str, plugin: str) -> None:
    """The key is in the table of the configuration's own version, and nothing else is another."""
    texts, made = planned(settings("containerd", "mirror"), {CONFIG: text})
    assert config_path(texts[CONFIG], plugin) == CERTS
    assert without(texts[CONFIG], plugin) == without(text, plugin)
    kept = [line for line in text.splitlines() if "config_path" not in line]
    assert [line for line in texts[CONFIG].splitlines() if line in kept][: len(kept)] == kept
    assert steps(made) == {"systemctl restart containerd"}


@pytest.mark.parametrize(("major", "version", "plugin"), [(None, 2, OLD), (1, 2, OLD), (2, 3, NEW)])
def test_no_configuration_yet(major: int | None, version: int, plugin: str) -> None:
    """A new file is of the version that the installed containerd writes."""
    for there in ({}, {CONFIG: ""}, {CONFIG: "# nothing\n"}):
        texts, _ = planned(settings("containerd", "mirror", containerd=major), there)
        assert tomllib.loads(texts[CONFIG])["version"] == version
        assert config_path(texts[CONFIG], plugin) == CERTS


def test_a_path_that_is_set_is_used() -> None:
    """Nothing in config.toml changes then, and no restart is needed: hosts.toml is read for each pull."""
    text = DEFAULT_1.replace('config_path = ""', 'config_path = "/opt/certs.d:/etc/docker/certs.d"')
    texts, made = planned(settings("containerd", "mirror"), {CONFIG: text})
    assert set(texts) == {"/opt/certs.d/_default/hosts.toml"}
    assert steps(made) == set()


LIST = "/opt/certs.d:/etc/docker/certs.d"


@pytest.mark.parametrize(
    ("text", "major"),
    [(DEFAULT_2, None), (DEFAULT_4, 2), (f"version = 2\n[plugins.'{OLD}'.registry]\n  config_path = ''\n", 2)],
    ids=["3", "4", "2 read by 2.x"],
)
def test_a_list_of_folders_becomes_its_first_one(text: str, major: int | None) -> None:
    """containerd 2.1 and later would look for one folder of the whole name; who has files elsewhere is told."""
    there = {CONFIG: text.replace("config_path = ''", f"config_path = '{LIST}'")}
    texts, made = planned(settings("containerd", "mirror", containerd=major), there)
    assert texts[CONFIG] == text.replace("config_path = ''", 'config_path = "/opt/certs.d"')
    assert "/opt/certs.d/_default/hosts.toml" in texts
    assert steps(made) == {"systemctl restart containerd"}
    assert not any("not read any more" in note for note in made.notes)
    _, made = planned(
        settings("containerd", "mirror", containerd=major), {**there, "/etc/docker/certs.d/r/ca.crt": "x"}
    )
    assert any("not read any more: /etc/docker/certs.d." in note for note in made.notes)


def test_an_imported_file_has_a_version_of_its_own() -> None:
    """containerd 2.x brings each file to its newest version and then merges their tables."""
    imported = "/etc/containerd/conf.d/50-old.toml"
    old = f'version = 2\n[plugins."{OLD}"]\n  sandbox_image = "r.example/pause:1"\n'
    texts, _ = planned(settings("containerd", "mirror"), {CONFIG: DEFAULT_4, imported: old})
    assert imported not in texts
    assert config_path(texts[CONFIG], NEW) == CERTS
    old += f'[plugins."{OLD}".registry]\n  config_path = "/old:/older"\n'
    texts, _ = planned(settings("containerd", "mirror"), {CONFIG: DEFAULT_4, imported: old})
    assert CONFIG not in texts
    assert config_path(texts[imported], OLD) == "/old"


def test_an_imported_file_that_counts_is_edited() -> None:
    """containerd 1.x takes a plugin's table from the last file whole."""
    imported = "/etc/containerd/conf.d/50-cri.toml"
    files = {CONFIG: 'version = 2\nimports = ["conf.d/*.toml", "/nowhere.toml"]\n', imported: DEBIAN}
    texts, _ = planned(settings("containerd", "mirror"), files)
    assert CONFIG not in texts
    assert config_path(texts[imported], OLD) == CERTS


def test_a_disabled_cri_is_told() -> None:
    """Docker's package installs containerd for dockerd only."""
    texts, made = planned(settings("containerd", "mirror"), {CONFIG: DOCKERS})
    assert set(texts) == {f"{CERTS}/_default/hosts.toml"}
    assert any("disables CRI" in note for note in made.notes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OLD_MIRRORS, r"registry\.mirrors, which containerd takes for an error"),
        (OLD_TLS, r"registry\.configs\.\*\.tls, which"),
        ("root = '/x'\n", "is of version 1; allowed here: 2, 3 and 4"),
        ("version = 5\n", "is of version 5"),
        ("version =", "is not TOML"),
        (f'version = 2\nplugins = {{"{OLD}" = {{registry = {{}}}}}}\n', "cannot be edited safely: set config_path"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    """Rather than a containerd that does not start."""
    with pytest.raises(ConfigError, match=f"{CONFIG}.*{words}"):
        planned(settings("containerd", "mirror"), {CONFIG: text})


SET = DEFAULT_2.replace("config_path = ''", f"config_path = '{CERTS}'")


@pytest.mark.parametrize(("text", "told"), [(DEBIAN, True), (DEFAULT_1, True), (SET, False), ("", True)])
def test_a_kind_node_without_the_key_is_told(text: str, told: bool) -> None:
    """Its containerd is not restarted, so the key is not set there."""
    texts, made = planned(settings("kind", "mirror"), {CONFIG: text})
    assert set(texts) == {f"{CERTS}/_default/hosts.toml"}
    assert any("names no config_path" in note for note in made.notes) == told


# hosts.toml.


def test_caches_as_mirrors_in_order() -> None:
    """Two caches are two hosts in the order given; there is no `server`, so the registry itself comes last."""
    texts, _ = planned(settings("containerd", "mirror", "ca", "10.0.0.5", "[fd00::1]:5001"))
    document = tomllib.loads(texts[f"{CERTS}/_default/hosts.toml"])
    assert list(document["host"]) == ["http://10.0.0.5:5000", "http://[fd00::1]:5001"]
    assert document["host"]["http://10.0.0.5:5000"] == {"capabilities": ["pull", "resolve"]}
    assert "server" not in document


def test_the_ca_for_containerd_alone() -> None:
    """As the default's key; containerd 1.6 does not read a file without a table of hosts."""
    texts, made = planned(settings("containerd", store=Store.CLIENT))
    document = tomllib.loads(texts[f"{CERTS}/_default/hosts.toml"])
    assert document == {"ca": f"{CERTS}/_default/mitm-cache.pem", "host": {}}
    assert texts[f"{CERTS}/_default/mitm-cache.pem"] == CA.pem
    assert "update-ca-certificates --fresh" not in steps(made)


def test_unverified_are_the_known_registries_only() -> None:
    texts, _ = planned(settings("containerd", "hosts", "insecure"))
    assert tomllib.loads(texts[f"{CERTS}/quay.io/hosts.toml"]) == {"skip_verify": True, "host": {}}
    assert f"{CERTS}/_default/hosts.toml" not in texts


def test_a_default_of_others_is_extended() -> None:
    """Our hosts come first, and what was there stays as it was."""
    path = f"{CERTS}/_default/hosts.toml"
    there = '# ours\nserver = "https://r.example"\n[host."https://m.example"]  # near\n  capabilities = ["pull"]'
    texts, _ = planned(settings("containerd", "mirror"), {path: there})
    document = tomllib.loads(texts[path])
    assert list(document["host"]) == ["http://10.0.0.5:5000", "https://m.example"]
    assert document["server"] == "https://r.example"
    assert "# near" in texts[path]
    with pytest.raises(ConfigError, match="sets ca already"):
        planned(settings("containerd", store=Store.CLIENT), {path: 'ca = "/x"\n'})


def test_files_of_single_registries_win_and_that_is_said() -> None:
    path = f"{CERTS}/quay.io/hosts.toml"
    texts, made = planned(settings("containerd", "mirror"), {path: 'server = "https://quay.io"\n'})
    assert path not in texts
    assert any("quay.io" in note for note in made.notes)


def test_a_folder_without_hosts_toml_wins_too() -> None:
    """containerd takes the first folder that is there, for its certificates alone."""
    _, made = planned(settings("containerd", "mirror"), {f"{CERTS}/ghcr.io/ca.crt": "x"})
    assert any("ghcr.io" in note for note in made.notes)
