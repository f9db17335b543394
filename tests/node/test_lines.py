"""Taking our own lines out of a file that others changed, and diffs that tell no secret."""

from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.node.lines import BEGIN, END, add_block, show_diff, take_out

LINES = st.lists(st.sampled_from(["a", "b", "127.0.0.1 localhost", "", "# x"]), max_size=8)
ENDS = st.sampled_from(["", "\n"])


def _text(lines: list[str], end: str) -> str:
    return "\n".join(lines) + (end if lines else "")


@given(LINES, ENDS, st.lists(st.sampled_from(["10.0.0.5 quay.io", "10.0.0.5 ghcr.io"]), min_size=1, max_size=3))
def test_a_block_goes_without_a_trace(lines: list[str], end: str, block: list[str]) -> None:
    """Whatever the file was, taking the block out gives it back."""
    before = _text(lines, end)
    after = add_block(before, block)
    assert after.startswith(before)
    assert after.endswith(f"{END}\n")
    assert take_out(before, after, after) == before


@given(LINES, LINES, LINES)
def test_what_others_add_around_the_block_stays(lines: list[str], above: list[str], below: list[str]) -> None:
    """Lines put before and after the block are kept, and the block goes."""
    before = _text(lines, "\n")
    after = add_block(before, ["10.0.0.5 quay.io"])
    first, last = _text([f"^{line}" for line in above], "\n"), _text([f"${line}" for line in below], "\n")
    assert take_out(before, after, first + after + last) == first + before + last


def test_lines_of_ours_that_others_deleted_are_no_matter() -> None:
    after = add_block("x\n", ["one", "two"])
    assert take_out("x\n", after, f"x\n{BEGIN}\ntwo\n{END}\ny\n") == "x\ny\n"


def test_lines_of_ours_that_others_changed_are_theirs() -> None:
    """Who has changed what we wrote gets no answer rather than a guess."""
    after = add_block("x\n", ["one", "two"])
    assert take_out("x\n", after, after.replace("two", "three")) is None


def test_a_line_that_we_replaced_comes_back() -> None:
    before, after = 'a = 1\nb = ""\n', 'a = 1\nb = "/etc"\n'
    assert take_out(before, after, after + "c = 2\n") == before + "c = 2\n"
    assert take_out(before, after, 'a = 1\nb = "/var"\n') is None


def test_a_missing_end_of_line_is_made_where_others_went_on() -> None:
    after = add_block("x", ["one"])
    assert take_out("x", after, after + "y\n") == "x\ny\n"


def test_only_a_newline_ends_a_line() -> None:
    """What else ends one in Unicode, or ended one on old machines, stays as it is."""
    before = "a\fb\nc\u2028d\x85e\rf\n"
    after = add_block(before, ["10.0.0.5 quay.io"])
    assert take_out(before, after, f"new\n{after}") == f"new\n{before}"


def test_a_diff_tells_no_secret() -> None:
    """Passwords and tokens in the lines around a change are not shown."""
    before = 'configs:\n  r.example:\n    auth:\n      password: hunter2\n      auth: "abc"\nx: http://u:hunter2@p\n'
    shown = show_diff("/x", before, before + "y: 1\n")
    assert "hunter2" not in shown
    assert "abc" not in shown
    assert "+y: 1" in shown
    assert "***" in show_diff("/x", None, '{"password": "hunter2"}')
    assert "hunter2" not in show_diff("/x", "password: hunter1\n", "password: hunter2\n")


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert "\ufffd" in show_diff("/x", None, b"\xff\n".decode(errors="surrogateescape"))
