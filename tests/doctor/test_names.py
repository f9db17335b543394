"""Whether a node finds the cache: what is wrong with its names, who says so, and what a closed listener is."""

import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from mitm_cache.doctor import node_names, probes
from mitm_cache.doctor.finding import Status
from mitm_cache.doctor.node import HostsLine, Node
from mitm_cache.doctor.node_names import check_door, check_name, check_ways, judge_door
from mitm_cache.doctor.probes import Resolution, Way, knock, resolve
from tests.doctor.nodes import CACHE, CONNECT, HUB, MIRROR, QUAY, TLS, mirror, node, scene, worst


@pytest.mark.parametrize(
    ("names", "hosts", "asked", "status", "words", "cure"),
    [
        pytest.param({}, (), True, Status.OK, f"leads to the cache ({CACHE})", "", id="well"),
        pytest.param(
            {"quay.io": ["10.9.9.9"]},
            (HostsLine(7, "10.9.9.9", ("quay.io",)),),
            True,
            Status.FAIL,
            f"quay.io leads to 10.9.9.9 (/etc/hosts, line 7), not to the cache {CACHE}",
            f"take quay.io out of line 7 of /etc/hosts, and add: {CACHE} quay.io",
            id="wrong line",
        ),
        pytest.param(
            {"quay.io": ["34.1.1.1"]},
            (),
            True,
            Status.FAIL,
            f"quay.io leads to 34.1.1.1 (DNS, by /etc/resolv.conf), not to the cache {CACHE}",
            f"echo '{CACHE} quay.io' | sudo tee -a /etc/hosts",
            id="missing",
        ),
        pytest.param(
            {"quay.io": ["34.1.1.1"]},
            (),
            False,
            Status.WARN,
            "does not lead to the cache: it is pulled past it",
            f"mitm-cache example hosts --address {CACHE} | sudo tee -a /etc/hosts",
            id="missing, not asked for",
        ),
        pytest.param(
            {"quay.io": [CACHE, "2600::1"]},
            (),
            False,
            Status.FAIL,
            f"quay.io also leads to 2600::1 (DNS, by /etc/resolv.conf), not to the cache {CACHE}",
            f"echo '{CACHE} quay.io' | sudo tee -a /etc/hosts",
            id="IPv6 past it",
        ),
        pytest.param(
            {"quay.io": ["34.1.1.1"]},
            (HostsLine(3, CACHE, ("quay.io",)),),
            True,
            Status.FAIL,
            f"quay.io leads to 34.1.1.1 (DNS, by /etc/resolv.conf), not to the cache {CACHE}",
            "the hosts entries are there: /etc/nsswitch.conf needs 'hosts: files dns', files first; nscd -i hosts",
            id="entries not read",
        ),
        pytest.param(
            {"quay.io": []},
            (),
            True,
            Status.FAIL,
            "quay.io cannot be resolved: ",
            f"echo '{CACHE} quay.io' | sudo tee -a /etc/hosts",
            id="unknown",
        ),
    ],
)
def test_name(
    tmp_path: Path,
    names: Mapping[str, list[str]],
    hosts: tuple[HostsLine, ...],
    asked: bool,
    status: Status,
    words: str,
    cure: str,
) -> None:
    """What the name does, which file says so, and the line that puts it right."""
    here = scene(tmp_path, asked=["quay.io"] if asked else [])
    (found,) = check_name(here, node(names, hosts=hosts), QUAY)
    assert (found.status, found.words, found.cure) == (status, words, cure)


def test_half_of_docker_hub(tmp_path: Path) -> None:
    """The name of the API is what pulls need; of the others it is told."""
    past = ["34.1.1.1"]
    (found,) = check_name(scene(tmp_path), node({"registry-1.docker.io": past}), HUB)
    assert found.status is Status.FAIL
    assert found.words.startswith("registry-1.docker.io leads to 34.1.1.1")
    (found,) = check_name(scene(tmp_path), node({"index.docker.io": past}), HUB)
    assert found.status is Status.WARN
    assert found.cure == f"echo '{CACHE} index.docker.io' | sudo tee -a /etc/hosts"


@pytest.mark.parametrize(
    ("way", "at", "status"),
    [
        (CONNECT, "10.0.0.9", Status.SKIP),
        (MIRROR, CACHE, Status.SKIP),
        (MIRROR, "10.0.0.9", Status.FAIL),
        (TLS, CACHE, Status.FAIL),
    ],
)
def test_other_ways_need_no_names(tmp_path: Path, way: Way, at: str, status: Status) -> None:
    """By proxy, or by a mirror of the registry's that is the cache, a name may lead anywhere."""
    away = node({name: ["34.1.1.1"] for name in HUB.names}, ways=(way,), mirrors=(mirror(f"http://{at}:5000"),))
    assert worst(check_name(scene(tmp_path, asked=["docker.io"]), away, HUB)).status is status


def test_nothing_is_set_up() -> None:
    """A node that nothing leads away from is told how; one with ways is told which."""
    lost = worst(check_ways(Node(caches=())))
    assert (lost.status, lost.cure) == (
        Status.FAIL,
        "mitm-cache doctor --node --cache ADDRESS, with the cache's address",
    )
    idle = worst(check_ways(node(ways=())))
    assert idle.status is Status.FAIL
    assert f"mitm-cache example hosts --address {CACHE}" in idle.cure
    assert worst(check_ways(node(ways=(TLS, MIRROR)))).words == "set up here: tls, mirror"
    assert worst(check_ways(node(trouble="/etc/docker/daemon.json is not JSON"))).status is Status.FAIL


def test_resolution() -> None:
    """Names are asked of the system, and one that nobody knows says why."""
    found = resolve({"localhost", "nobody.invalid"})
    assert set(found["localhost"].addresses) <= {"127.0.0.1", "::1"}
    assert found["localhost"].addresses
    assert found["nobody.invalid"].addresses == ()
    assert found["nobody.invalid"].trouble
    assert resolve({"localhost"}, seconds=0)["localhost"] in (found["localhost"], Resolution(trouble=_LATE))


_LATE = "the DNS server did not answer within 0 s"


def test_doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open listener, one that is closed, and one whose packets are lost are told apart."""
    monkeypatch.setattr(probes, "STEP", 0.3)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        assert knock("127.0.0.1", port) == "refused"
        bound.listen(0)
        assert knock("127.0.0.1", port) == "open"
        waiting = []
        try:
            # A full queue drops what comes, as a firewall does.
            for _ in range(8):
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
                waiting.append(one)
            assert knock("127.0.0.1", port) == "silent"
        finally:
            for one in waiting:
                one.close()
        here = node(caches=("127.0.0.1",), ways=(Way("tls", "127.0.0.1", port),))
    (found,) = check_door(scene(tmp_path), here, "tls")
    assert found.status is Status.FAIL
    assert "refused" in found.words
    assert "listen.tls, or systemctl start mitm-cache" in found.cure


@pytest.mark.parametrize("door", ["refused", "silent", "rejected", "unreachable"])
def test_closed_doors(door: probes.Door) -> None:
    """A listener that this node needs fails, with its key or its command; one that it does not need is told."""
    needed = judge_door(node(), "tls", f"tls {CACHE}:443", door)
    assert needed.status is Status.FAIL
    assert "listen.tls" in needed.cure or "ip route get" in needed.cure
    assert judge_door(node(), "mirror", f"mirror {CACHE}:5000", door).status is Status.SKIP
    assert judge_door(node(), "tls", f"tls {CACHE}:443", "open").status is Status.OK
    assert set(node_names.PURPOSES) == {"tls", "clear", "connect", "mirror"}
