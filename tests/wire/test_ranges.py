"""Byte ranges against the plainest model of RFC 9110, 14: sets of positions."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mitm_cache.wire.ranges import Span, Unsatisfiable, parse_content_range, resolve

sizes = st.integers(0, 40)
positions = st.integers(0, 50)
fields = st.one_of(
    st.tuples(positions, positions), st.tuples(positions, st.none()), st.tuples(st.none(), positions)
)  # fmt: skip


def model(first: int | None, last: int | None, size: int) -> list[int]:
    """Every position that is asked for and exists."""
    if first is None:
        assert last is not None
        return [position for position in range(size) if position >= size - last]
    return [position for position in range(size) if position >= first and (last is None or position <= last)]


@given(fields, sizes, st.sampled_from(["bytes={}-{}", "BYTES={}-{}", " bytes = {} - {} "]))
def test_like_the_model(asked: tuple[int | None, int | None], size: int, form: str) -> None:
    """One range is the positions it names, 416 where there are none, and ignored where it runs backwards."""
    first, last = asked
    header = form.format("" if first is None else first, "" if last is None else last)
    if first is not None and last is not None and last < first:
        assert resolve(header, size) is None
        return
    wanted = model(first, last, size)
    if not wanted:
        with pytest.raises(Unsatisfiable):
            resolve(header, size)
        return
    span = resolve(header, size)
    assert span is not None
    assert list(range(span.start, span.stop)) == wanted
    assert span.length == len(wanted)
    assert parse_content_range(span.content_range) == span


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param("bytes", id="no range"),
        pytest.param("bytes=", id="nothing asked"),
        pytest.param("bytes=-", id="only a dash"),
        pytest.param("bytes=0-1,3-4", id="several"),
        pytest.param("bytes=5-2", id="backwards"),
        pytest.param("items=0-1", id="another unit"),
        pytest.param("bytes=0x1-2", id="not decimal"),
        pytest.param("bytes=--1", id="negative"),
        pytest.param("bytes=٣-", id="digits of another script"),
        pytest.param(f"bytes={'9' * 5000}-", id="a number without end"),
        pytest.param(f"bytes=0-{'9' * 5000}", id="a last position without end"),
    ],
)
def test_ignored(header: str | None) -> None:
    """What is no single, sound byte range is answered with the whole."""
    assert resolve(header, 100) is None


@pytest.mark.parametrize(("header", "size"), [("bytes=0-", 0), ("bytes=100-", 100), ("bytes=-0", 100), ("bytes=-1", 0)])
def test_unsatisfiable(header: str, size: int) -> None:
    """A range that begins behind the end, or asks for none of it, is 416."""
    with pytest.raises(Unsatisfiable):
        resolve(header, size)


@given(st.text("bytes=0123456789-, ²٣"), sizes)
@example("bytes=²-", 40)
def test_any_header(header: str, size: int) -> None:
    """Whatever a client sends, the answer is the whole, 416, or a span inside the content."""
    try:
        span = resolve(header, size)
    except Unsatisfiable:
        return
    assert span is None or (0 <= span.start < span.stop <= size and span.size == size)


def test_whole() -> None:
    """All of a content, an empty one included."""
    assert Span.whole(10) == Span(0, 10, 10)
    assert Span.whole(0).length == 0


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes 0-0/1", Span(0, 1, 1)),
        (" bytes 2-4/10 ", Span(2, 5, 10)),
        (None, None),
        ("", None),
        ("bytes */10", None),
        ("bytes 0-1/*", None),
        ("bytes 4-2/10", None),
        ("bytes 0-10/10", None),
        ("items 0-1/10", None),
        ("bytes 0-1/10, bytes 3-4/10", None),
        (f"bytes 0-1/{'9' * 5000}", None),
    ],
)
def test_content_range(header: str | None, span: Span | None) -> None:
    """An upstream's Content-Range counts only where it is sound and of a known size."""
    assert parse_content_range(header) == span
