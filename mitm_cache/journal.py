"""One event for each request, made at the door; every account of what happened is written from it.

The access line is text on a terminal and JSON otherwise. No event holds a header, a query or a credential.
"""

import json
import select
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TextIO


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A request that has ended. `time` is seconds of the epoch; `*_ms` are milliseconds, `bytes_*` are of bodies:
    to the client, and from upstream, or of a push to the local registry from the client."""

    time: float
    listener: str
    client: str
    user: str = ""
    method: str = ""
    outcome: str
    reason: str = ""
    registry: str = ""
    repository: str = ""
    reference: str = ""
    digest: str = ""
    status: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    ttfb_ms: float = 0.0
    ms: float = 0.0
    user_agent: str = ""
    request_id: str = ""


def to_json(event: Event) -> str:
    """One JSON object; the time by RFC 3339."""
    return json.dumps(asdict(event) | {"time": _timestamp(event.time)}, separators=(",", ":"))


def to_text(event: Event) -> str:
    """One line for a person."""
    what = "/".join(part for part in (event.registry, event.repository) if part)
    separator = "@" if ":" in event.reference else ":"
    name = f"{what}{separator}{_short(event.reference)}" if event.reference else what
    size = f" {_size(event.bytes_out)}" if event.bytes_out else ""
    words = f"{event.method} {name}".strip()
    line = (
        f"{_timestamp(event.time)[11:19]} {event.outcome:<11} {event.status or '-':>3} {words}{size}"
        f" {event.ms:.0f} ms  {event.listener} {event.client}  {event.reason}"
    )
    return "".join(character if character.isascii() and character.isprintable() else "?" for character in line)


def _shortened(event: Event) -> Event:
    """What clients and upstream have said at length, cut: JSON may need six bytes for a character."""
    return replace(
        event,
        method=event.method[:16],
        user=event.user[:64],
        repository=event.repository[:128],
        reference=event.reference[:128],
        reason=event.reason[:128],
        user_agent=event.user_agent[:64],
    )


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _short(reference: str) -> str:
    return reference[:19] if ":" in reference else reference


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


class Journal:
    """Hands each event to everybody who keeps account."""

    def __init__(self) -> None:
        self._sinks: list[Callable[[Event], None]] = []

    def add(self, sink: Callable[[Event], None]) -> None:
        """Have `sink` called with every event from now on."""
        self._sinks.append(sink)

    def record(self, event: Event) -> None:
        """Tell every sink."""
        for sink in self._sinks:
            sink(event)


class AccessLine:
    """Writes events as lines. A line may wait for `flush`, which the service calls many times a second: one system
    call for each line is a seventh of what a small HIT costs."""

    def __init__(self, style: str, stream: TextIO | None = None) -> None:
        """`style`: text, json, or auto (text on a terminal)."""
        self._stream = stream or sys.stdout
        if style == "auto":
            style = "text" if self._stream.isatty() else "json"
        self._format = to_text if style == "text" else to_json
        self._lines: list[str] = []

    def __call__(self, event: Event) -> None:
        line = self._format(event) + "\n"
        if len(line) > select.PIPE_BUF:
            line = self._format(_shortened(event)) + "\n"
        self._lines.append(line)

    def flush(self) -> None:
        """Write what has waited. Several processes may have one pipe: what is written to it at once stays together
        up to PIPE_BUF bytes (POSIX, write), so that lines are written whole."""
        lines, self._lines = self._lines, []
        try:
            for text in _pieces(lines):
                self._stream.write(text)
                self._stream.flush()
        except (OSError, ValueError):
            pass  # a log that cannot be written must not stop pulls


def _pieces(lines: list[str]) -> Iterator[str]:
    """Whole lines together, in no more than PIPE_BUF bytes; they are ASCII."""
    piece: list[str] = []
    size = 0
    for line in lines:
        if size + len(line) > select.PIPE_BUF and piece:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield "".join(piece)
