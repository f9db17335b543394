"""How many connections there may be: of all clients, by the descriptors of this process, and of each one.

A connection may need a file and a way upstream besides itself; without a limit the next accept() fails for everybody.
"""

import resource
from collections import Counter
from ipaddress import ip_network

PER_CLIENT = 2048
"""Connections of one address: a cluster behind one NAT address has many. An IPv6 host has 2^64 of them, and so does a
whole cluster: all of a /64 together have half of what there is."""
RESERVED = 512
"""Descriptors that no connection of a client may take."""
PER_CONNECTION = 2
"""Descriptors that a connection may need, itself included, on the average of those that are at work."""

MAX_TOLD = 10_000
"""Addresses whose refusal is remembered to have had its line."""


def room() -> int:
    """How many connections the descriptors of this process are enough for; takes what the system allows it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass  # as many as there are
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = 1 << 20
    return max((soft - RESERVED) // PER_CONNECTION, 16)


class Crowd:
    """The connections that are open, counted by address."""

    def __init__(self, limit: int, per_client: int = PER_CLIENT) -> None:
        self._limit = limit
        self._per_client = per_client
        self._per_network = max(per_client, limit // 2)
        self._open: Counter[str] = Counter()
        self._told: set[str] = set()
        self.total = 0

    def enter(self, address: str) -> str:
        """Count a connection in; why not, where there are too many, or "". What is not let in does not `leave`."""
        network = _network(address)
        if self._open[address] >= self._per_client:
            return f"more than {self._per_client} connections of one address"
        if self._open[network] >= self._per_network:
            return f"more than {self._per_network} connections of {network}"
        if self.total >= self._limit:
            return f"more than {self._limit} connections; LimitNOFILE= or ulimit -n sets how many there may be"
        self._open.update({address, network})
        self.total += 1
        return ""

    def leave(self, address: str) -> None:
        """Count a connection out."""
        self.total -= 1
        network = _network(address)
        self._told.discard(network)
        for each in {address, network}:
            self._open[each] -= 1
            if not self._open[each]:
                del self._open[each]

    def tells(self, address: str) -> bool:
        """Whether a refusal is worth a line: one for each address or /64, until one of its connections has ended."""
        network = _network(address)
        if network in self._told:
            return False
        if len(self._told) >= MAX_TOLD:
            self._told.clear()  # addresses cost nothing where there is IPv6, and some never have a connection
        self._told.add(network)
        return True


def _network(address: str) -> str:
    """What an address is one of: a /64 where it is IPv6's, and itself otherwise."""
    if ":" not in address:
        return address
    return str(ip_network((address.partition("%")[0], 64), strict=False))
