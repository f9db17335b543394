"""Access lines."""

import dataclasses
import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.journal import AccessLine, Event, Journal, to_json, to_text

TIME = datetime(2025, 3, 1, 12, 30, 45, 678_000, tzinfo=UTC).timestamp()
FIELDS = [
    "time", "listener", "client", "user", "method", "outcome", "reason", "registry", "repository", "reference",
    "digest", "status", "bytes_out", "bytes_in", "ttfb_ms", "ms", "user_agent", "request_id",
]  # fmt: skip
HIT = Event(
    time=TIME,
    listener="tls",
    client="192.0.2.7",
    method="GET",
    outcome="HIT",
    reason="in the cache",
    registry="quay.io",
    repository="team/app",
    reference="1.0",
    status=200,
    bytes_out=1_234_567,
    ms=12.4,
)


def test_fields() -> None:
    """The fields of the log, by their fixed names and in their order."""
    assert [field.name for field in dataclasses.fields(Event)] == FIELDS
    assert list(json.loads(to_json(HIT))) == FIELDS


def test_json() -> None:
    """Everything that is known, as JSON; the time is RFC 3339 in UTC."""
    assert json.loads(to_json(HIT)) == dataclasses.asdict(HIT) | {"time": "2025-03-01T12:30:45.678Z"}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        pytest.param(
            HIT,
            "12:30:45 HIT         200 GET quay.io/team/app:1.0 1.2 MB 12 ms  tls 192.0.2.7  in the cache",
            id="tag",
        ),
        pytest.param(
            dataclasses.replace(HIT, reference=f"sha256:{'ab' * 32}", bytes_out=999, reason=""),
            "12:30:45 HIT         200 GET quay.io/team/app@sha256:abababababab 999 B 12 ms  tls 192.0.2.7  ",
            id="digest, shortened",
        ),
        pytest.param(
            Event(time=TIME, listener="tls", client="192.0.2.7", outcome="REFUSED", reason="unknown name"),
            "12:30:45 REFUSED       -  0 ms  tls 192.0.2.7  unknown name",
            id="no request at all",
        ),
        pytest.param(
            dataclasses.replace(HIT, repository="", reference="", bytes_out=0),
            "12:30:45 HIT         200 GET quay.io 12 ms  tls 192.0.2.7  in the cache",
            id="a registry's own",
        ),
    ],
)
def test_text(event: Event, line: str) -> None:
    """One line for a person."""
    assert to_text(event) == line


@pytest.mark.parametrize(
    ("count", "shown"), [(1, "1 B"), (1000, "1.0 KB"), (2_500_000, "2.5 MB"), (3_210_000_000, "3.21 GB")]
)
def test_sizes(count: int, shown: str) -> None:
    """Sizes in the unit that a person would use."""
    assert f" {shown} " in to_text(dataclasses.replace(HIT, bytes_out=count))


@given(st.floats(0, 4e9))
def test_time(seconds: float) -> None:
    """Every time is RFC 3339, in UTC, to the millisecond."""
    text = json.loads(to_json(dataclasses.replace(HIT, time=seconds)))["time"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert abs(datetime.fromisoformat(text).timestamp() - seconds) <= 0.001


anything = st.text(st.characters(), max_size=30)
events = st.builds(
    Event,
    time=st.just(TIME),
    **{name: anything for name in FIELDS if name not in {"time", "status", "bytes_out", "bytes_in", "ttfb_ms", "ms"}},
    status=st.integers(0, 599),
    bytes_out=st.integers(0),
)


@given(events)
def test_no_field_breaks_a_line(event: Event) -> None:
    """Whatever a client puts into a name or an agent: one event is one line, and nothing in it moves a cursor."""
    text, document = to_text(event), to_json(event)
    assert text.isprintable()
    assert document.isascii()
    assert document.isprintable()
    assert json.loads(document)["user_agent"] == event.user_agent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def write(style: str, stream: TextIO | None, *events: Event) -> None:
    line = AccessLine(style, stream)
    for event in events or (HIT,):
        line(event)
    line.flush()


@pytest.mark.parametrize(
    ("style", "stream", "expected"),
    [
        ("auto", Terminal(), to_text(HIT)),
        ("auto", io.StringIO(), to_json(HIT)),
        ("text", io.StringIO(), to_text(HIT)),
        ("json", Terminal(), to_json(HIT)),
    ],
    ids=["a terminal", "no terminal", "text", "json"],
)
def test_styles(style: str, stream: io.StringIO, expected: str) -> None:
    """Text on a terminal and JSON otherwise, unless one was asked for."""
    write(style, stream)
    assert stream.getvalue() == f"{expected}\n"


def test_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Without another stream the lines go to standard output."""
    write("json", None)
    assert capsys.readouterr().out == to_json(HIT) + "\n"


def test_flush(tmp_path: Path) -> None:
    """A line that waits is in the file after a flush, in order, and once only."""
    file = tmp_path / "access.log"
    other = dataclasses.replace(HIT, outcome="MISS")
    with file.open("w") as stream:
        line = AccessLine("json", stream)
        line(HIT)
        line(other)
        line.flush()
        line.flush()
        assert file.read_text() == f"{to_json(HIT)}\n{to_json(other)}\n"


def test_a_log_that_cannot_be_written() -> None:
    """A full disk under the log does not stop a pull, nor does a stream that is closed."""
    raw = io.FileIO("/dev/full", "w")
    stream = io.TextIOWrapper(raw, write_through=True)
    write("json", stream)
    stream.close()
    write("json", stream)


def test_an_ascii_stream() -> None:
    """Where the log takes ASCII only, every line is written all the same."""
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii")
    write("text", stream, HIT, dataclasses.replace(HIT, reason="ü\ud800"))
    assert buffer.getvalue().count(b"\n") == 2


def test_journal() -> None:
    """Every sink is told every event, in order."""
    one: list[Event] = []
    two: list[Event] = []
    journal = Journal()
    journal.add(one.append)
    journal.record(HIT)
    journal.add(two.append)
    other = dataclasses.replace(HIT, outcome="MISS")
    journal.record(other)
    assert (one, two) == ([HIT, other], [other])
