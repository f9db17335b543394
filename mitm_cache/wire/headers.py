"""Header fields, case-insensitive by name, in the order they came."""

from collections.abc import Iterable, Iterator

type Pair = tuple[str, str]

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Fields that belong to one connection and are never passed on (RFC 9110, 7.6.1)."""


class Headers:
    """An immutable list of header fields."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self.pairs = tuple(pairs)

    def get(self, name: str) -> str | None:
        """The first value of a field, or None."""
        wanted = name.lower()
        return next((value for key, value in self.pairs if key.lower() == wanted), None)

    def get_all(self, name: str) -> list[str]:
        """Every value of a field."""
        wanted = name.lower()
        return [value for key, value in self.pairs if key.lower() == wanted]

    def only(self, *names: str) -> "Headers":
        """Just the fields of these names."""
        wanted = {name.lower() for name in names}
        return Headers(pair for pair in self.pairs if pair[0].lower() in wanted)

    def without(self, names: Iterable[str]) -> "Headers":
        """All but the fields of these names."""
        unwanted = {name.lower() for name in names}
        return Headers(pair for pair in self.pairs if pair[0].lower() not in unwanted)

    def __add__(self, other: "Headers") -> "Headers":
        return Headers(self.pairs + other.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __repr__(self) -> str:
        # Values may be credentials or signed addresses: a repr ends in logs.
        return f"Headers({', '.join(name for name, _ in self.pairs)})"
