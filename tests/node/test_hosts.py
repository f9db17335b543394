"""/etc/hosts: the block, and what may stand around it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.errors import ConfigError
from mitm_cache.node.hosts import HOSTS
from mitm_cache.node.lines import BEGIN, END
from mitm_cache.node.plan import plan
from mitm_cache.registries import TABLE, Known, Registry
from tests.node.memory import CA, Memory, planned, settings, steps

UBUNTU = """127.0.0.1 localhost
127.0.1.1 node

# The following lines are desirable for IPv6 capable hosts
::1     ip6-localhost ip6-loopback
ff02::1 ip6-allnodes
"""


def block(text: str) -> dict[str, list[str]]:
    """The addresses of each name in the block."""
    inside = text.partition(f"{BEGIN}\n")[2].partition(END)[0].splitlines()
    found: dict[str, list[str]] = {}
    for line in inside:
        address, *names = line.split()
        for name in names:
            found.setdefault(name, []).append(address)
    return found


def test_every_name_leads_to_every_cache() -> None:
    texts, _ = planned(settings("hosts", "hosts", "ca", "10.0.0.5", "fd00::1"), {HOSTS: UBUNTU})
    assert texts[HOSTS].startswith(UBUNTU)
    names = {"docker.proxy", *(name for one in TABLE for name in one.names)}
    assert block(texts[HOSTS]) == {name: ["10.0.0.5", "fd00::1"] for name in names}


def test_token_hosts_if_wanted() -> None:
    plain, _ = planned(settings("hosts"))
    closed, made = planned(settings("hosts", token_hosts=True))
    assert "auth.docker.io" not in block(plain[HOSTS])
    assert block(closed[HOSTS])["auth.docker.io"] == ["10.0.0.5"]
    assert not any("--no-egress" in note for note in made.notes)


def test_a_name_that_leads_elsewhere() -> None:
    """The first line may win, so adding ours would do nothing."""
    with pytest.raises(ConfigError, match=r"line 7 leads quay\.io to 192\.0\.2\.1"):
        planned(settings("hosts"), {HOSTS: UBUNTU + "192.0.2.1 Quay.io other # x\n"})
    planned(settings("hosts"), {HOSTS: UBUNTU + "10.0.0.5 quay.io\n# 192.0.2.1 quay.io\n"})


@given(st.lists(st.sampled_from(["10.1.1.1 a.example", "# quay.io", "", "::1 localhost"])), st.sampled_from(["", "\n"]))
def test_whatever_is_there_stays(lines: list[str], end: str) -> None:
    text = "\n".join(lines) + end
    texts, _ = planned(settings("hosts"), {HOSTS: text})
    assert texts[HOSTS].startswith(text)
    assert texts[HOSTS].count(BEGIN) == 1


@pytest.mark.parametrize(
    ("files", "folder", "command"),
    [
        ({"/usr/sbin/update-ca-certificates": ""}, "/usr/local/share/ca-certificates",
         "update-ca-certificates --fresh"),
        ({"/usr/sbin/update-ca-certificates": "", "/etc/pki/trust/anchors/x": ""}, "/etc/pki/trust/anchors",
         "update-ca-certificates --fresh"),
        ({"/usr/bin/update-ca-trust": ""}, "/etc/pki/ca-trust/source/anchors", "update-ca-trust"),
        ({"/usr/bin/update-ca-trust": "", "/etc/ca-certificates/trust-source/anchors/x": ""},
         "/etc/ca-certificates/trust-source/anchors", "update-ca-trust"),
    ],
    ids=["Debian, Alpine", "SUSE", "RHEL", "Arch"],
)  # fmt: skip
def test_the_store_of_each_family(files: dict[str, str], folder: str, command: str) -> None:
    made = plan(settings("hosts"), Memory(files))
    assert {change.path: change.text for change in made.changes}[f"{folder}/mitm-cache.crt"] == CA.pem
    assert steps(made) == {command}


def test_the_registry_of_ones_own() -> None:
    """Its names lead to the cache like others; `localhost` is nobody else's, and `local` is no host."""
    known = Known([Registry("local", "localhost:5000", aliases=("registry.lan:5000", "10.0.0.5:5000"))])
    texts, _ = planned(settings("hosts", known=known), {HOSTS: "127.0.0.1 localhost\n"})
    assert block(texts[HOSTS]) == {"docker.proxy": ["10.0.0.5"], "registry.lan": ["10.0.0.5"]}


def test_no_store() -> None:
    with pytest.raises(ConfigError, match="install the package ca-certificates"):
        plan(settings("hosts"), Memory({}))
