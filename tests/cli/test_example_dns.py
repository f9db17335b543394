"""Names in a DNS server of one's own: real servers answer what is printed, and nothing else is changed."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest
from click.testing import CliRunner

from mitm_cache.cli import main
from mitm_cache.registries import TABLE
from tests.needs import find_tool, needs_tool
from tests.ports import free_port

ONE, TWO, SIX = "192.0.2.7", "192.0.2.8", "2001:db8::7"
NAMES = {"docker.proxy", *(name for registry in TABLE for name in registry.names)}


def printed(kind: str, *arguments: str) -> str:
    result = CliRunner().invoke(main, ["example", kind, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@contextmanager
def running(*command: str, port: int) -> Iterator[int]:
    program = find_tool(command[0])
    assert program is not None
    with subprocess.Popen([program, *command[1:]], stderr=subprocess.PIPE, text=True) as process:
        try:
            until = time.monotonic() + 20
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None, process.stderr and process.stderr.read()
                    assert time.monotonic() < until, "the server does not listen"
            yield port
        finally:
            process.terminate()


def serve_dnsmasq(folder: Path, text: str, port: int) -> list[str]:
    file = folder / "dnsmasq.conf"
    file.write_text(text)
    return ["dnsmasq", "-d", "-R", "-h", "-C", str(file), "-p", str(port), "-a", "127.0.0.1", "--bind-interfaces"]


def serve_unbound(folder: Path, text: str, port: int) -> list[str]:
    file = folder / "unbound.conf"
    own = (
        f'server:\n    port: {port}\n    interface: 127.0.0.1\n    chroot: ""\n    username: ""\n    use-syslog: no\n'
        f'    logfile: ""\n    pidfile: "{folder}/pid"\n    directory: "{folder}"\n    do-daemonize: no\n'
        "    access-control: 127.0.0.0/8 allow\n    module-config: iterator\n"
        "remote-control:\n    control-enable: no\n"
        'forward-zone:\n    name: "."\n    forward-addr: 127.0.0.1@1\n'
    )
    file.write_text(own + text)
    return ["unbound", "-d", "-c", str(file)]


def _answer(question: dns.message.Message, port: int) -> dns.message.Message:
    for _ in range(3):
        try:
            return dns.query.udp(question, "127.0.0.1", 10, port)
        except dns.exception.Timeout:
            continue  # resolvers ask again too
    return dns.query.udp(question, "127.0.0.1", 10, port)


def ask(port: int, name: str, kind: str) -> set[str] | None:
    """The addresses of a name; None where the server asks elsewhere, where nobody is."""
    answer = _answer(dns.message.make_query(name, kind), port)
    if answer.rcode() in (dns.rcode.REFUSED, dns.rcode.SERVFAIL):
        return None
    assert answer.rcode() == dns.rcode.NOERROR, name
    return {row.to_text() for found in answer.answer for row in found}


SERVERS = {"dnsmasq": serve_dnsmasq, "unbound": serve_unbound}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("dnsmasq", marks=needs_tool("dnsmasq", package="dnsmasq-base")),
        pytest.param("unbound", marks=needs_tool("unbound", package="unbound")),
    ],
)
def test_a_real_server(tmp_path: Path, kind: str) -> None:
    """Registries have the cache's addresses, of the families it has; names below them are asked for where they were."""
    port = free_port()
    with running(*SERVERS[kind](tmp_path, printed(kind, "--address", ONE, "--address", TWO), port), port=port):
        for name in sorted(NAMES):
            assert ask(port, name, "A") == {ONE, TWO}
            assert ask(port, name, "AAAA") == set(), "an address of the other family would lead past the cache"
        for name in ("cdn01.quay.io", "production.cloudflare.docker.com", "auth.docker.io", "example.com"):
            assert ask(port, name, "A") is None
    port = free_port()
    text = printed(kind, "--address", SIX, "--no-egress")
    (tmp_path / "again").mkdir()
    with running(*SERVERS[kind](tmp_path / "again", text, port), port=port):
        assert ask(port, "auth.docker.io", "AAAA") == {SIX}
        assert ask(port, "quay.io", "A") == set()


def test_coredns() -> None:
    """Each address with every name, in the form of a hosts file, and the rest falls through."""
    lines = printed("coredns", "--address", ONE, "--address", SIX).splitlines()
    assert lines[1] == "hosts {"
    assert lines[-2:] == ["    fallthrough", "}"]
    rows = [line.split() for line in lines[2:-2]]
    assert [row[0] for row in rows] == [ONE, SIX]
    assert all(set(row[1:]) == NAMES for row in rows)
