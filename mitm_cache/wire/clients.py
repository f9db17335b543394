"""Which addresses are let in."""

import ipaddress
from collections.abc import Sequence


class Clients:
    """Which addresses may connect."""

    def __init__(self, allowed: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> None:
        self._allowed = tuple(allowed)

    def admits(self, address: str) -> bool:
        """Whether an address, IPv4 mapped into IPv6 included, is in an allowed network."""
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self._allowed)
