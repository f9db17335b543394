"""dockerd's daemon.json and what else it reads."""

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.errors import ConfigError
from mitm_cache.node.docker import DAEMON, INSECURE, MIRRORS, merge, take_out_daemon
from mitm_cache.node.files import encode
from mitm_cache.node.model import Store
from tests.node.memory import planned, settings, steps

NVIDIA = """{
    "default-runtime": "nvidia",
    "runtimes": {
        "nvidia": {"path": "nvidia-container-runtime", "runtimeArgs": []}
    },
    "log-opts": {"max-size": "10m", "labels": "\\u00e4"},
    "registry-mirrors": ["https://mirror.example/"],
    "default-ulimits": {"nofile": {"Hard": 64000, "Name": "nofile", "Soft": 64000}}
}"""
WANTED = {MIRRORS: ["http://10.0.0.5:5000"], INSECURE: ["quay.io", "ghcr.io"]}

TEXT = st.text(string.ascii_letters + string.digits + ".:/-äß", max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={MIRRORS: st.lists(TEXT, max_size=3), INSECURE: st.lists(TEXT, max_size=3), "x": JSON, "runtimes": JSON},
)


@given(DOCUMENTS, st.sampled_from([None, 2, "\t"]))
def test_a_merge_keeps_everything(document: dict[str, Any], indent: int | str | None) -> None:
    """Every key and value is still there, ours come first and once; a second merge changes nothing; it is undone."""
    text = json.dumps(document, indent=indent)
    merged = merge(text, WANTED)
    now = json.loads(merged)
    for key, value in document.items():
        if key in WANTED:
            assert [item for item in now[key] if item in value][-len(value) :] == value or not value
        else:
            assert now[key] == value
    for key, values in WANTED.items():
        bare = [item.rstrip("/") for item in now[key]]
        assert all(value in bare for value in values)
    assert merge(merged, WANTED) == merged
    back = take_out_daemon(text, merged, merged.replace("{", "{ ", 1))
    assert back is not None
    assert json.loads(back) == document


def test_a_real_file() -> None:
    merged = merge(NVIDIA, WANTED)
    document = json.loads(merged)
    assert document[MIRRORS] == ["http://10.0.0.5:5000", "https://mirror.example/"]
    assert {key: value for key, value in json.loads(NVIDIA).items() if key != MIRRORS}.items() <= document.items()
    assert '\n    "default-runtime"' in merged  # the indentation is kept
    assert "ä" in merged


def test_half_a_character_stays_an_escape() -> None:
    """JSON may have it, and no file in UTF-8 (RFC 8259, 8.2)."""
    merged = merge('{"labels": ["\\ud83d", "\xe4"]}', WANTED)
    assert json.loads(encode(merged))["labels"] == ["\ud83d", "\xe4"]


def test_a_file_that_has_it_all_stays_as_it_is() -> None:
    text = '{"registry-mirrors":   ["http://10.0.0.5:5000/"]}'
    assert merge(text, {MIRRORS: ["http://10.0.0.5:5000"]}) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        ('{"a": 1, "a": 2}', "a key is there twice"),
        ('{"registry-mirrors": "x"}', "registry-mirrors is not a list of texts"),
        ('{"insecure-registries": [1]}', "insecure-registries is not a list of texts"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_file_that_dockerd_would_refuse(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"{DAEMON}.*{words}"):
        merge(text, WANTED)


def test_what_somebody_added_stays() -> None:
    after = merge(NVIDIA, WANTED)
    document = json.loads(after)
    document["debug"] = True
    document[INSECURE].append("r.example")
    back = take_out_daemon(NVIDIA, after, json.dumps(document))
    assert back is not None
    assert json.loads(back) == {**json.loads(NVIDIA), "debug": True, INSECURE: ["r.example"]}
    assert take_out_daemon(NVIDIA, after, "{ broken") is None


def test_the_ca_in_the_store_is_all_that_dockerd_needs() -> None:
    texts, made = planned(settings("docker"))
    assert set(texts) == {"/etc/hosts", "/usr/local/share/ca-certificates/mitm-cache.crt"}
    assert steps(made) == {"update-ca-certificates --fresh", "systemctl restart docker"}


def test_docker_hub_is_never_insecure() -> None:
    """dockerd verifies it whatever daemon.json says: it gets the mirror."""
    texts, made = planned(settings("docker", "hosts", "insecure", "10.0.0.5", "fd00::1"))
    document = json.loads(texts[DAEMON])
    assert document[MIRRORS] == ["http://10.0.0.5:5000", "http://[fd00::1]:5000"]
    assert "quay.io" in document[INSECURE]
    assert not [name for name in document[INSECURE] if "docker.io" in name or "docker.com" in name]
    assert steps(made) == {"systemctl reload docker"}
    assert any("unprotected" in note for note in made.notes)


def test_folders_of_its_own_serve_all_but_docker_hub() -> None:
    texts, _ = planned(settings("docker", store=Store.CLIENT))
    assert "/etc/docker/certs.d/quay.io/mitm-cache.crt" in texts
    assert not [path for path in texts if "docker.io/" in path]
    assert json.loads(texts[DAEMON]) == {MIRRORS: ["http://10.0.0.5:5000"]}


def test_a_mirror_is_for_docker_hub_only_and_that_is_said() -> None:
    texts, made = planned(settings("docker", "mirror", "ca", "cache.lan:5001"))
    assert json.loads(texts[DAEMON]) == {MIRRORS: ["http://cache.lan:5001"]}
    assert set(texts) == {DAEMON}
    assert any("Docker Hub's images only" in note for note in made.notes)


@pytest.mark.parametrize(
    "path", ["/etc/default/docker", "/lib/systemd/system/docker.service", "/etc/systemd/system/docker.service.d/a.conf"]
)
def test_a_flag_that_would_keep_dockerd_from_starting(path: str) -> None:
    """The same setting by flag and by daemon.json is an error to dockerd."""
    line = "ExecStart=/usr/bin/dockerd --registry-mirror=https://m.example\n"
    with pytest.raises(ConfigError, match=f"{path} gives dockerd --registry-mirror"):
        planned(settings("docker", "mirror"), {path: line})
    planned(settings("docker", "mirror"), {path: f"# {line}"})
