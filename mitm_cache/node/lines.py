"""Texts as lines: marked blocks, and taking our own part out of a file that somebody has changed since."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher, unified_diff

BEGIN, END = "# BEGIN mitm-cache setup", "# END mitm-cache setup"
_SECRET = re.compile(
    r"""(?i)(["']?[\w.-]*(?:password|passwd|passphrase|secret|token|auth|credential)[\w.-]*["']?\s*[:=]\s*)(?=[^\s{\[]).+"""
)
_USER = re.compile(r"://[^/@\s]+@")

type Hunk = tuple[int, int, list[str]]
"""Lines `[start, end)` of one text, and what another has in their place."""


def add_block(text: str, lines: list[str]) -> str:
    """The text with a marked block of lines at its end."""
    gap = "" if not text or text.endswith("\n") else "\n"
    return text + gap + "\n".join([BEGIN, *lines, END]) + "\n"


def take_out(before: str, after: str, now: str) -> str | None:
    """What `now` would be if we had not made `before` into `after`; None where somebody changed the lines we made.

    Exactly `before` where nothing was changed since.
    """
    if now in (before, after):
        return before
    base, ours, theirs = (_lines(text) for text in (after, before, now))
    undone, foreign = list(_hunks(base, ours)), list(_hunks(base, theirs))
    if any(_collide(one, other) for one in undone for other in foreign):
        return None
    # Both edit lines of `after`, and none edits another's. At one place their insertions come after our undoing.
    merged: list[str] = []
    at = 0
    for start, end, lines in sorted([*undone, *foreign], key=lambda hunk: (hunk[0], hunk[1])):
        if start < at:  # they deleted a line of ours, or put lines between ours
            merged += lines
            at = max(at, end)
            continue
        merged += base[at:start] + lines
        at = end
    merged += base[at:]
    # A last line without an end may not be the last any more.
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in merged[:-1]) + "".join(merged[-1:])


def _lines(text: str) -> list[str]:
    """Lines with their ends, where what else ends lines in Unicode is text."""
    return [line for line in re.split(r"(?<=\n)", text) if line]


def _hunks(base: list[str], other: list[str]) -> Iterator[Hunk]:
    for tag, start, end, first, last in SequenceMatcher(None, base, other, autojunk=False).get_opcodes():
        if tag != "equal":
            yield start, end, other[first:last]


def _collide(ours: Hunk, theirs: Hunk) -> bool:
    """Whether they changed lines that we would change back: deletions on both sides, and lines put between, do not."""
    start, end = max(ours[0], theirs[0]), min(ours[1], theirs[1])
    if start >= end:  # no line in common
        inside = theirs[0] == theirs[1] and ours[0] < theirs[0] < ours[1]
        return (inside and bool(ours[2])) or (ours[0] == ours[1] and theirs[0] < ours[0] < theirs[1])
    return bool(ours[2]) or bool(theirs[2])


def show_diff(path: str, before: str | None, after: str | None) -> str:
    """A unified diff for people: values that look like secrets are hidden, odd bytes are replaced."""
    sides = [[_shown(line) for line in (text or "").splitlines()] for text in (before, after)]
    if before is not None and after is not None and sides[0] == sides[1]:
        return f"--- {path}\n+++ {path}\n(only white space at the end, or values that are not shown, differ)\n"
    names = ("/dev/null" if before is None else path, "/dev/null" if after is None else path)
    lines = list(unified_diff(sides[0], sides[1], names[0], names[1], lineterm=""))
    if not lines:  # an empty file that comes or goes
        lines = [f"--- {names[0]}", f"+++ {names[1]}"]
    return "\n".join(lines) + "\n"


def _shown(line: str) -> str:
    harmless = _USER.sub("://***@", _SECRET.sub(r"\1***", line))
    return harmless.encode(errors="surrogateescape").decode(errors="replace")
