"""How many passwords a client may try: each costs a processor up to a second, and one may be right."""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable

BUDGET = 20
"""Passwords that a client may try at once, and in PERIOD seconds from then on; right ones do not count."""
PERIOD = 60.0
MAX_CLIENTS = 4096


class Attempts:
    """A budget for each client, which fills again with time; an IPv6 client is its /64."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, client: str) -> bool:
        """Take one out of the budget, or say that it is empty."""
        key = _whole(client)
        left = self._filled(key)
        if left < 1:
            return False
        self._put(key, left - 1)
        return True

    def give_back(self, client: str) -> None:
        """The password was right."""
        key = _whole(client)
        if key in self._left:
            self._put(key, self._filled(key) + 1)

    def _filled(self, key: str) -> float:
        left, at = self._left.get(key, (float(BUDGET), self._clock()))
        return min(left + (self._clock() - at) * BUDGET / PERIOD, BUDGET)

    def _put(self, key: str, left: float) -> None:
        self._left[key] = (left, self._clock())
        self._left.move_to_end(key)
        if len(self._left) > MAX_CLIENTS:
            self._left.popitem(last=False)


def _whole(client: str) -> str:
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if address.version == 4:
        return client
    return str(ipaddress.ip_network((address, 64), strict=False))
