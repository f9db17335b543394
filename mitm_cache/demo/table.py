"""The two pulls of a demo as a table for people."""

from collections.abc import Iterable, Sequence

from mitm_cache.demo.puller import Pull

_HEADINGS = ("request", "status", "bytes", "ms", "outcome")
_NUMBERS = {1, 2, 3}


def requests(pull: Pull) -> list[str]:
    """One line per request, columns aligned."""
    rows = [
        (f"{each.method} {each.what}", str(each.status), f"{each.size:,}", f"{each.ms:.1f}", each.outcome)
        for each in pull.requests
    ]
    total = ("all", "", f"{pull.size:,}", f"{pull.seconds * 1000:.1f}", tally(pull))
    return aligned([_HEADINGS, *rows, total], numbers=_NUMBERS)


def tally(pull: Pull) -> str:
    """How often each outcome occurred, as in "11 HIT, 1 REVALIDATED"."""
    outcomes = dict.fromkeys(each.outcome for each in pull.requests)
    return ", ".join(f"{pull.count(outcome)} {outcome}" for outcome in outcomes)


def aligned(rows: Sequence[Sequence[str]], *, numbers: Iterable[int] = ()) -> list[str]:
    """Columns as wide as their widest cell; those in `numbers` end where they begin to be compared, at the right."""
    right = set(numbers)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
