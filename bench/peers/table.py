"""The figures of several caches as a table of Markdown, with ratios."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.peers.work import FEW, HERD, MANIFESTS, Figures


@dataclass(frozen=True, slots=True)
class _Row:
    field: str
    title: str
    digits: int
    more_is_better: bool = False


_ROWS = (
    _Row("fetches", f"cold, {HERD} clients: GETs of the blob upstream", 0),
    _Row("fetched_mb", "bytes fetched, MB", 0),
    _Row("first_median_s", "first byte, median client, s", 2),
    _Row("first_worst_s", "first byte, worst client, s", 2),
    _Row("last_s", "last byte of all, s", 1),
    _Row("cold_cpu_s", "CPU of the cache, s", 1),
    _Row("one_mb_s", "warm, 1 client: MB/s", 0, more_is_better=True),
    _Row("one_cpu_s_gb", "CPU s/GB", 2),
    _Row("few_mb_s", f"warm, {FEW} clients: MB/s in all", 0, more_is_better=True),
    _Row("few_cpu_s_gb", "CPU s/GB", 2),
    _Row("manifest_ms", f"warm manifest, {MANIFESTS} on a connection: p50 ms", 2),
    _Row("manifests_s", "requests/s", 0, more_is_better=True),
)


def table(figures: Mapping[str, Sequence[Figures]], *, ours: str) -> str:
    """A row for each figure, a column for each cache: best–worst of its turns, (best as a multiple of our best)."""
    lines = [f"| | {' | '.join(figures)} |", f"|---|{'---|' * len(figures)}"]
    for row in _ROWS:
        sorted_ = {
            name: sorted((getattr(turn, row.field) for turn in turns), reverse=row.more_is_better)
            for name, turns in figures.items()
        }
        base = sorted_[ours][0] if ours in sorted_ else 0.0
        cells = [_cell(values, row.digits, base if name != ours else 0.0) for name, values in sorted_.items()]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float], digits: int, base: float) -> str:
    shown = list(dict.fromkeys(f"{value:.{digits}f}" for value in (values[0], values[-1])))
    return "–".join(shown) + (f" ({_ratio(values[0] / base)}×)" if base else "")


def _ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
