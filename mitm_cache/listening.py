"""What is listened on: sockets that a service manager has handed over, those the operator named, and the usual ones."""

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mitm_cache.config import HOSTS, LISTENERS, PORTS, Config
from mitm_cache.errors import ConfigError
from mitm_cache.parsing import Endpoint
from mitm_cache.proxy.mode import addresses, bind, inherit


@dataclass(frozen=True, slots=True)
class Bound:
    """What is listened on, known once the sockets are bound."""

    sockets: Sequence[tuple[str, socket.socket]]

    @property
    def for_clients(self) -> list[tuple[str, socket.socket]]:
        """The sockets that pulls come in by, each with the name of its listener."""
        return [(listener, bound) for listener, bound in self.sockets if listener != "admin"]

    @property
    def for_admin(self) -> list[socket.socket]:
        """The sockets of the admin listener."""
        return [bound for listener, bound in self.sockets if listener == "admin"]

    def addresses(self) -> Iterator[tuple[str, str, int]]:
        """Listener, address and port of each socket."""
        return addresses(self.sockets)

    def address(self, listener: str) -> tuple[str, int]:
        """The address and port of a listener's first socket. Raises KeyError where it has none."""
        for name, host, port in self.addresses():
            if name == listener:
                return host, port
        raise KeyError(listener)


def bind_all(config: Config) -> Bound:
    """Every listener: as a service manager handed it over, else as the operator named it, else on its usual port or,
    where that is not allowed, on a high one. Raises ConfigError."""
    sockets = inherit(os.environ, os.getpid(), LISTENERS)
    given = {listener for listener, _ in sockets}
    try:
        for listener in LISTENERS:
            if listener in given:
                continue
            if listener in config.listen:
                sockets += [(listener, _bind_named(listener, endpoint)) for endpoint in config.listen[listener]]
                continue
            host, (usual, high) = HOSTS.get(listener, ""), PORTS[listener]
            try:
                sockets.append((listener, bind(listener, Endpoint(host, usual))))
            except PermissionError:
                sockets.append((listener, bind(listener, Endpoint(host, high))))
    except BaseException:
        for _, bound in sockets:
            bound.close()
        raise
    return Bound(sockets)


def _bind_named(listener: str, endpoint: Endpoint) -> socket.socket:
    try:
        return bind(listener, endpoint)
    except PermissionError as error:
        raise ConfigError(
            f"listen.{listener}: {endpoint} is a port that needs the capability CAP_NET_BIND_SERVICE, or a lower "
            "net.ipv4.ip_unprivileged_port_start"
        ) from error
