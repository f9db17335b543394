"""What is listened on: sockets that a service manager has handed over, those the operator named, and the usual ones.

Each worker has a socket of its own at each address (SO_REUSEPORT), so that the kernel shares connections out; where
there are fewer, workers have one in common. Nothing here needs mitmproxy: who binds need not be who serves.
"""

import errno
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mitm_cache.config import HOSTS, LISTENERS, PORTS, Config
from mitm_cache.errors import ConfigError
from mitm_cache.parsing import Endpoint

FIRST_INHERITED = 3
"""The first descriptor that a service manager hands over (sd_listen_fds(3))."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a listener is asked to listen: None is wherever it does by default. `number` tells two of the same apart;
    `handed` is what a service manager has bound, and what is never bound anew."""

    listener: str
    endpoint: Endpoint | None = None
    number: int = 0
    handed: bool = False


type Places = Mapping[Place, Sequence[socket.socket]]


@dataclass(frozen=True, slots=True)
class Bound:
    """What one process listens on, known once the sockets are bound; `elsewhere`: what others do for it."""

    sockets: Sequence[tuple[str, socket.socket]]
    elsewhere: Sequence[tuple[str, str, int]] = ()

    @property
    def for_clients(self) -> list[tuple[str, socket.socket]]:
        """The sockets that pulls come in by, each with the name of its listener."""
        return [(listener, bound) for listener, bound in self.sockets if listener != "admin"]

    @property
    def for_admin(self) -> list[socket.socket]:
        """The sockets of the admin listener."""
        return [bound for listener, bound in self.sockets if listener == "admin"]

    def addresses(self) -> Iterator[tuple[str, str, int]]:
        """Listener, address and port of everything that is listened on, each once."""
        yield from dict.fromkeys((*addresses(self.sockets), *self.elsewhere))

    def address(self, listener: str) -> tuple[str, int]:
        """The address and port of a listener's first socket. Raises KeyError where it has none."""
        for name, host, port in self.addresses():
            if name == listener:
                return host, port
        raise KeyError(listener)


def bind_all(config: Config) -> Bound:
    """Every listener for a process that is alone: as a service manager handed it over, else as the operator named it,
    else on its usual port or, where that is not allowed, on a high one. Raises ConfigError."""
    places = bind_places(config, 1, inherited(os.environ, os.getpid()))
    return Bound([(place.listener, bound) for place, sockets in places.items() for bound in sockets])


def bind_places(config: Config, count: int, kept: Places) -> Places:
    """The sockets of every listener, `count` at each address (the admin listener has one) or as many as can be had.

    `kept`: what is bound already, which is taken again where it is still wanted. Raises ConfigError, with nothing more
    bound than before.
    """
    places = {place: list(kept.get(place, ())) for place in _wanted(config, kept)}
    try:
        for place, sockets in places.items():
            if not sockets:
                sockets.append(_bind_first(place))
            if place.listener != "admin" and not place.handed:
                _bind_more(sockets, count)
    except BaseException:
        close_others(places, kept)
        raise
    return places


def close_others(places: Places, kept: Places) -> None:
    """Close the sockets that are in `places` and not in `kept`."""
    wanted = {id(bound) for sockets in kept.values() for bound in sockets}
    for sockets in places.values():
        for bound in sockets:
            if id(bound) not in wanted:
                bound.close()


def _wanted(config: Config, kept: Places) -> Iterator[Place]:
    for listener in LISTENERS:
        handed = [place for place in kept if place.handed and place.listener == listener]
        if handed:
            yield from handed
        elif listener in config.listen:
            for number, endpoint in enumerate(config.listen[listener]):
                yield Place(listener, endpoint, config.listen[listener][:number].count(endpoint))
        else:
            yield Place(listener)


def share(places: Places, rank: int, count: int) -> Bound:
    """What the worker `rank` of `count` accepts connections at: every socket is somebody's, and everybody has one of
    each place."""
    mine: list[tuple[str, socket.socket]] = []
    for place, sockets in places.items():
        if place.listener != "admin":
            chosen = sockets[rank::count] if rank < len(sockets) else [sockets[rank % len(sockets)]]
            mine += [(place.listener, bound) for bound in chosen]
    return Bound(mine, [*addresses((place.listener, bound) for place in places for bound in places[place])])


def _bind_first(place: Place) -> socket.socket:
    if place.endpoint is not None:
        return _bind_named(place.listener, place.endpoint)
    host, (usual, high) = HOSTS.get(place.listener, ""), PORTS[place.listener]
    try:
        return bind(place.listener, Endpoint(host, usual))
    except PermissionError:
        return bind(place.listener, Endpoint(host, high))


def _bind_more(sockets: list[socket.socket], count: int) -> None:
    """Bind beside the first one, which was alone at its address when it was bound: a second service on the same port
    is refused as ever. Who has given up the rights that the first one took has only what there is."""
    first = sockets[0]
    try:
        while len(sockets) < count:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            host, port = first.getsockname()[:2]
            sockets.append(_bind(first.family, host, port, shared=True))
    except OSError:
        pass


def _bind_named(listener: str, endpoint: Endpoint) -> socket.socket:
    try:
        return bind(listener, endpoint)
    except PermissionError as error:
        raise ConfigError(
            f"listen.{listener}: {endpoint} is a port that needs the capability CAP_NET_BIND_SERVICE, or a lower "
            "net.ipv4.ip_unprivileged_port_start"
        ) from error


def bind(listener: str, endpoint: Endpoint) -> socket.socket:
    """A bound TCP socket; without a host on every address, IPv6 and IPv4. Raises ConfigError, OSError for EACCES."""
    family = socket.AF_INET6 if ":" in endpoint.host or not endpoint.host else socket.AF_INET
    try:
        return _bind(family, endpoint.host or "::", endpoint.port)
    except OSError as error:
        if not endpoint.host and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return _bind(socket.AF_INET, "0.0.0.0", endpoint.port)  # noqa: S104 - a host without IPv6
        if error.errno == errno.EACCES:
            raise
        raise ConfigError(
            f"listen.{listener}: {endpoint} cannot be bound: {error.strerror}; name another one, or [] for none"
        ) from error


def _bind(family: socket.AddressFamily | int, host: str, port: int, *, shared: bool = False) -> socket.socket:
    # asyncio sets TCP_NODELAY only on sockets that say they are TCP: 40 ms for each small answer otherwise.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def inherited(environ: Mapping[str, str], pid: int) -> Places:
    """The sockets that a service manager has bound for this process. Raises ConfigError."""
    places: dict[Place, list[socket.socket]] = {}
    for listener, given in inherit(environ, pid, LISTENERS):
        # Several at one address are a unit's with ReusePort=: one for each worker.
        same = next((p for p in places if p.listener == listener and _name(places[p][0]) == _name(given)), None)
        if same is None:
            same = Place(listener, number=sum(p.listener == listener for p in places), handed=True)
        places.setdefault(same, []).append(given)
    return places


def _name(bound: socket.socket) -> tuple[str, int]:
    host, port = bound.getsockname()[:2]
    return host, port


def inherit(environ: Mapping[str, str], pid: int, listeners: Sequence[str]) -> list[tuple[str, socket.socket]]:
    """The sockets that a service manager has bound for this process, each under its `FileDescriptorName=`.

    Raises ConfigError where a name is no listener's, or a socket is not TCP's.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found = []
    for offset in range(int(environ.get("LISTEN_FDS", "0"))):
        name = names[offset] if offset < len(names) else ""
        if name not in listeners:
            raise ConfigError(
                f"a socket was handed over as {name!r}; FileDescriptorName= is one of {', '.join(listeners)}"
            )
        given = socket.socket(fileno=FIRST_INHERITED + offset)
        if given.family not in (socket.AF_INET, socket.AF_INET6) or given.type != socket.SOCK_STREAM:
            raise ConfigError(f"the socket handed over as {name!r} is not TCP's: ListenStream= is a port or an address")
        given.set_inheritable(False)
        found.append((name, given))
    return found


def addresses(sockets: Iterable[tuple[str, socket.socket]]) -> Iterator[tuple[str, str, int]]:
    """Listener, address and port of each bound socket."""
    for listener, bound in sockets:
        name = bound.getsockname()
        yield listener, name[0], name[1]
