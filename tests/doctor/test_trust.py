"""Whether clients believe the cache's certificate: real handshakes with a server of a CA that some places hold."""

import ssl
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mitm_cache.ca import CertificateAuthority
from mitm_cache.demo.certificates import authority
from mitm_cache.doctor.finding import Finding, Status
from mitm_cache.doctor.node_trust import CLOCK, check_trust
from mitm_cache.doctor.probes import Way
from mitm_cache.registries import Registry
from tests.doctor.nodes import HUB, QUAY, mirror, node, put, scene, worst
from tests.doctor.servers import answering

HERE = "127.0.0.1"
Look = Callable[..., list[Finding]]


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """The CA of the cache."""
    return authority(tmp_path / "ca", "quay.io", "docker.io")[0]


def shows(tmp_path: Path, made: CertificateAuthority, name: str, *, days: int = 0) -> ssl.SSLContext:
    """A server's side of TLS with a leaf for a name, made so many days from now."""
    leaf = made.mint(name, now=datetime.now(UTC) + timedelta(days=days))
    path = tmp_path / f"{name}.pem"
    path.write_bytes(leaf.private_key_pem + leaf.certificate_chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@pytest.fixture
def look(tmp_path: Path, ca: Path) -> Look:
    """Checks the trust of a node in a server that shows a certificate of that CA."""

    def run(
        registry: Registry = QUAY,
        *,
        clients: Collection[str] = ("docker",),
        given: Path | None = None,
        system: Path | None = None,
        tls: ssl.SSLContext | None = None,
        **more: Any,
    ) -> list[Finding]:
        tls = tls or shows(tmp_path, CertificateAuthority.load(tmp_path / "ca"), registry.host)
        led = dict.fromkeys(("quay.io", "other.example", *HUB.names), (HERE,))
        # An empty file is no system store: nothing but what is put here is trusted.
        environ = {"PATH": "", "SSL_CERT_FILE": str(system or put(tmp_path, "empty.pem", ""))}
        with answering(tls=tls) as port:
            ways = (Way("tls", HERE, port), *more.pop("ways", ()))
            facts = node(led, caches=(HERE,), ways=ways, clients=frozenset(clients), **more)
            return list(check_trust(scene(tmp_path, ca=given, environ=environ), facts, registry))

    return run


def test_system_store(look: Look, ca: Path) -> None:
    """The CA in the system store is enough for every client."""
    (found,) = look(system=ca, clients={"docker", "containers", "containerd"})
    assert found.status is Status.OK


@pytest.mark.parametrize(
    ("client", "restart"),
    [
        ("docker", " && systemctl restart docker"),
        ("containers", ""),
        ("containerd", " && systemctl restart containerd"),
    ],
)
def test_nowhere(look: Look, client: str, restart: str) -> None:
    """A client that has it nowhere fails; the cure is the script, and the client's own place."""
    (found,) = look(clients={client})
    assert found.status is Status.FAIL
    assert "the system store does not believe the certificate" in found.words
    assert found.cure.startswith("on the cache host: mitm-cache ca export > ca.crt; here: sudo sh install-ca.sh ca.crt")
    assert f"install-ca.sh ca.crt{restart}; or " in found.cure
    assert "certs.d/REGISTRY/" in found.cure


@pytest.mark.parametrize(
    ("client", "place"),
    [
        ("docker", "/etc/docker/certs.d/quay.io/ca.crt"),
        ("containers", "/etc/containers/certs.d/quay.io/ca.crt"),
        ("containers", "/etc/docker/certs.d/quay.io/ca.crt"),
        ("containerd", "/etc/containerd/certs.d/quay.io/ca.crt"),
    ],
)
def test_own_place(look: Look, tmp_path: Path, ca: Path, client: str, place: str) -> None:
    """The CA in the client's own place is enough for it; another CA there is told."""
    path = put(tmp_path, place, ca.read_text())
    assert worst(look(clients={client})).status is Status.OK
    path.write_text(authority(tmp_path / "other", "quay.io")[0].read_text())
    found = worst(look(clients={client}))
    assert found.status is Status.FAIL
    assert "its own folder has another CA" in found.words
    path.write_text("no certificate")
    assert worst(look(clients={client})).status is Status.FAIL


def test_docker_hub_in_dockerd(look: Look, tmp_path: Path, ca: Path) -> None:
    """dockerd does not look into certs.d or insecure-registries for Docker Hub: the store, or the mirror."""
    for name in HUB.names:
        put(tmp_path, f"/etc/docker/certs.d/{name}/ca.crt", ca.read_text())
    insecure = {"insecure-registries": list(HUB.names)}
    found = worst(look(HUB, docker=insecure))
    assert found.status is Status.FAIL
    assert "dockerd reads neither certs.d nor insecure-registries for Docker Hub" in found.words
    assert '"registry-mirrors": ["http://127.0.0.1:5000"]' in found.cure
    assert "install-ca.sh" in found.cure
    assert worst(look(HUB, mirrors=(mirror(f"http://{HERE}:5000"),))).status is Status.OK


def test_unverified(look: Look, tmp_path: Path) -> None:
    """Clients that are told not to verify pull, and that is worth a word."""
    found = worst(look(docker={"insecure-registries": ["quay.io"]}))
    assert (found.status, found.words) == (Status.WARN, "dockerd has it as insecure and does not verify")
    put(tmp_path, "/etc/containerd/certs.d/quay.io/hosts.toml", "skip_verify = true\n")
    assert "skip_verify" in worst(look(clients={"containerd"})).words


def test_given(look: Look, tmp_path: Path, ca: Path) -> None:
    """--ca tells a CA that is not trusted here from a cache that shows another one."""
    found = worst(look(given=ca))
    assert f"sudo sh install-ca.sh {ca}" in found.cure
    other = worst(look(given=authority(tmp_path / "other", "quay.io")[0]))
    assert other.status is Status.FAIL
    assert "a certificate of another CA than" in other.words
    assert "mitm-cache ca export" in other.cure


def test_no_certificate(look: Look) -> None:
    """A name that the cache does not know: the key that adds it."""
    found = worst(look(Registry("other.example", "other.example"), tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)))
    assert found.status is Status.FAIL
    assert found.words.startswith("the cache shows no certificate for it")
    assert '[registries."other.example"]' in found.cure


@pytest.mark.parametrize("days", [-30, 30], ids=["the node is ahead", "the node is behind"])
def test_clock(look: Look, tmp_path: Path, ca: Path, days: int) -> None:
    """A certificate that is not valid by this node's clock is the clock's fault, whatever is trusted."""
    made = CertificateAuthority.create(
        tmp_path / "timed", permitted=["quay.io"], now=datetime.now(UTC) - timedelta(days=60)
    )
    found = worst(look(system=made.certificate_path, tls=shows(tmp_path, made, "quay.io", days=days)))
    assert (found.status, found.check, found.cure) == (Status.FAIL, "clock", CLOCK)


def test_no_way(look: Look, tmp_path: Path) -> None:
    """Where nothing answers, the line of the listener tells; where no TLS leads there is nothing to check."""
    facts = node(caches=(HERE,), resolved={}, ways=())
    assert worst(check_trust(scene(tmp_path), facts, QUAY)).status is Status.SKIP
    with answering() as port:
        pass
    gone = node({"quay.io": (HERE,)}, caches=(HERE,), ways=(Way("tls", HERE, port),))
    found = worst(check_trust(scene(tmp_path), gone, QUAY))
    assert (found.status, found.cure) == (Status.SKIP, "see the line of the listener (doors)")
