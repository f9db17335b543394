"""Three network namespaces: the internet, the cache host between, and a node with no route past it but to a token host.

They belong to holder processes, not to names under /run/netns, so they vanish with the last process in them, however
the test run ends. They are apart because the cache must be able to tell its own addresses from a registry's.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.lab.process import LabError, Process, wait_until

# Not loopback: dockerd takes all of 127.0.0.0/8 as insecure.
CACHE = "10.77.0.1"
NODE = "10.77.0.11"
CACHE_OUTSIDE = "10.78.0.1"
DNS = "10.78.0.2"
FIRST_INTERNET = 10
# A token host with a name of its own is not the cache's to answer for: nodes reach it past the cache, and only it.
NODE_OUTSIDE = "10.79.0.11"
TOKEN_HOST = "10.79.0.10"


def internet_address(index: int) -> str:
    """The address of the internet's host number `index`."""
    return f"10.78.0.{FIRST_INTERNET + index}"


@dataclass(frozen=True)
class Namespace:
    """A network namespace, held by one sleeping process."""

    name: str
    holder: Process

    @property
    def path(self) -> str:
        return f"/proc/{self.holder.pid}/ns/net"

    def configure(self, *lines: str) -> None:
        """Run `ip` commands inside."""
        command = ["nsenter", f"--net={self.path}", "ip", "-batch", "-"]
        done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"ip in {self.name}: {done.stderr}")

    def never_forward(self) -> None:
        """Make sure that this host is not a router, whatever the machine's own default is."""
        command = ["nsenter", f"--net={self.path}", "tee", "/proc/sys/net/ipv4/ip_forward"]
        subprocess.run(command, input=b"0", stdout=subprocess.DEVNULL, check=True)


@dataclass(frozen=True)
class Network:
    internet: Namespace
    cache: Namespace
    node: Namespace


def _hold(name: str, log: Path, stack: ExitStack) -> Namespace:
    command = ["unshare", "--net", "sleep", "infinity"]
    holder = Process(f"net-{name}", command, log=log, env={"PATH": os.environ["PATH"]}, end=signal.SIGKILL)
    stack.callback(holder.stop)
    return Namespace(name, holder)


def _join(one: Namespace, other: Namespace) -> None:
    # Both ends are named after the host at the far end.
    ends = ["link", "add", other.name, "netns", str(one.holder.pid), "type", "veth"]
    peer = ["peer", "name", one.name, "netns", str(other.holder.pid)]
    done = subprocess.run(["ip", *ends, *peer], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"veth {one.name} - {other.name}: {done.stderr}")


def _is_apart(path: str, mine: str) -> bool:
    return os.readlink(path) != mine


@contextmanager
def network(log: Path, hosts: int) -> Iterator[Network]:
    """The three namespaces, with `hosts` addresses on the internet's side."""
    with ExitStack() as stack:
        internet, cache, node = (_hold(name, log, stack) for name in ("internet", "cache", "node"))
        mine = os.readlink("/proc/self/ns/net")
        for space in (internet, cache, node):
            wait_until(partial(_is_apart, space.path, mine), f"namespace {space.name}")
        _join(cache, internet)
        _join(cache, node)
        _join(node, internet)
        outside = [f"addr add {address}/24 dev cache" for address in (DNS, *map(internet_address, range(hosts)))]
        internet.configure(
            "link set lo up", *outside, "link set cache up", f"addr add {TOKEN_HOST}/24 dev node", "link set node up"
        )
        cache.configure(
            "link set lo up",
            f"addr add {CACHE_OUTSIDE}/24 dev internet",
            "link set internet up",
            f"addr add {CACHE}/24 dev node",
            "link set node up",
        )
        node.configure(
            "link set lo up",
            f"addr add {NODE}/24 dev cache",
            "link set cache up",
            f"addr add {NODE_OUTSIDE}/24 dev internet",
            "link set internet up",
        )
        for space in (internet, cache, node):
            space.never_forward()
        yield Network(internet, cache, node)
