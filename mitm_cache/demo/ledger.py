"""What the demo hosts were asked for: the proof of how much a cache saved, and of what it told to whom."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Record:
    """One request; `status` is 0 until the answer begins, `done` false until its last byte is out or it broke."""

    host: str
    kind: str
    method: str
    path: str
    query: Mapping[str, str] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    sni: str = ""
    status: int = 0
    sent: int = 0
    done: bool = False

    @property
    def range(self) -> str:
        return self.headers.get("range", "")

    @property
    def authorization(self) -> str:
        """The scheme of the credential only; the whole of it is in `headers`."""
        return self.headers.get("authorization", "").partition(" ")[0]

    @property
    def accept(self) -> str:
        return self.headers.get("accept", "")

    @property
    def via(self) -> str:
        return self.headers.get("via", "")


class Ledger:
    """The records of one or more hosts, in order of arrival; safe to read while they serve."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._records: list[Record] = []

    def __len__(self) -> int:
        return len(self.select())

    def __iter__(self) -> Iterator[Record]:
        return iter(self.select())

    def __repr__(self) -> str:
        return "\n".join(f"{each.method} {each.host} {each.path} {each.status}" for each in self)

    def add(self, record: Record) -> None:
        with self._changed:
            self._records.append(record)
            self._changed.notify_all()

    def note(self, record: Record, *, status: int | None = None, sent: int | None = None, done: bool = False) -> None:
        """Fill in what became of a request."""
        with self._changed:
            record.status = record.status if status is None else status
            record.sent = record.sent if sent is None else sent
            record.done = record.done or done
            self._changed.notify_all()

    def select(self, **where: object) -> list[Record]:
        """The records whose named fields have these values, as in `select(kind="object", method="GET")`."""
        with self._changed:
            return [each for each in self._records if all(getattr(each, key) == value for key, value in where.items())]

    def count(self, **where: object) -> int:
        """How many `select` would give."""
        return len(self.select(**where))

    def wait(self, number: int, *, timeout: float = 30, **where: object) -> list[Record]:
        """Block until there are at least `number` such records.

        Raises:
            TimeoutError: there are not, in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.count(**where) >= number, timeout):
                raise TimeoutError(f"{self.count(**where)} of {number} requests {where} in {timeout} s:\n{self!r}")
            return self.select(**where)

    def clear(self) -> None:
        """Begin to count anew."""
        with self._changed:
            self._records.clear()
