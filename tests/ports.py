"""Ports for programs that have to be told one before they listen there."""

import random
import socket
from pathlib import Path

_LOWEST = 10_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody has, of TCP and of UDP, and that the kernel gives to nobody by itself.

    Those that it gives to connections would be taken now and then before the program binds them; by who waits for that
    program, too: to connect to a port where nobody listens yet, from that very port, is to be connected to oneself.
    """
    low, high = map(int, _EPHEMERAL.read_text().split())
    ports: list[int] = [*range(_LOWEST, low), *range(high + 1, 1 << 16)] or list(range(low, high + 1))
    while True:
        port: int = random.choice(ports)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind((address, port))
                udp.bind((address, port))
            except OSError:
                continue
            return port
