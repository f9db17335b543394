"""docs/conformance.md, made of a trial: `make conformance OCI_CONFORMANCE=PROGRAM`."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.suite import BAD, OFF, PASS, SKIP, Outcome, SuiteError, Verdict
from tests.conformance.trial import Trial, run_trial

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/conformance.md"
VARIABLE = "OCI_CONFORMANCE"
SUITE = "https://github.com/opencontainers/distribution-spec/tree/main/conformance"
PARTS = {
    "Pull": ("Ping", "Blob get", "Blob get range", "Blob head", "Manifest get by digest", "Manifest get by tag",
             "Manifest head by digest", "Manifest head by tag"),
    "Push": ("Blob push", "Blob post only", "Blob post put", "Blob chunked", "Blob streaming", "Blob mount",
             "Blob anonymous mount", "Blob upload cancel", "Manifest put by digest", "Manifest put by tag",
             "Manifest put with subject", "Manifest put with tag params"),
    "Content discovery": ("Tag listing", "Referrers"),
    "Content management": ("Tag delete", "Tag delete atomic", "Blob delete", "Blob delete atomic", "Manifest delete",
                           "Manifest delete atomic"),
}  # fmt: skip
"""The parts of the specification, and the suite's APIs in them."""

HEAD = """\
# Conformance

What the [conformance suite]({suite})
of the OCI distribution specification says: version {version} of the specification, commit
`{commit}` of the suite. All four parts of it are run against a [registry of one's own](local.md),
and what only reads also through the cache, beside the same at the registry itself. Made by `make conformance
OCI_CONFORMANCE=PROGRAM`, where PROGRAM is what `go build -buildvcs=true .` makes in the suite's folder.
"""


def render(trial: Trial) -> str:
    """The whole page."""
    first = next(iter(trial.whole.values()))
    return "".join(_lines(trial, first))


def _lines(trial: Trial, first: Outcome) -> Iterator[str]:
    yield HEAD.format(suite=SUITE, version=first.version, commit=first.commit)
    yield "\n## A registry of one's own\n\n"
    yield "| way in | tests | pass | fail | skip | disabled |\n|---|---|---|---|---|---|\n"
    for way, one in trial.whole.items():
        counts = (len(one.verdicts), one.count(PASS), one.count(*BAD), one.count(SKIP), one.count(OFF))
        yield f"| {way} | {' | '.join(map(str, counts))} |\n"
    for part, apis in PARTS.items():
        yield f"\n### {part}\n\n| API | {' | '.join(trial.whole)} |\n|---|{'---|' * len(trial.whole)}\n"
        for api in apis:
            yield f"| {api} | {' | '.join(one.apis.get(api, OFF) for one in trial.whole.values())} |\n"
    yield "\nDisabled is what the suite leaves out of this version of the specification unless it is told otherwise.\n"
    yield f"\n### Kinds of content\n\n| content | {' | '.join(trial.whole)} |\n|---|{'---|' * len(trial.whole)}\n"
    for name in sorted(first.data):
        yield f"| {name} | {' | '.join(one.data.get(name, OFF) for one in trial.whole.values())} |\n"
    yield from _compared(trial)
    yield "\n## Every test\n\nEach of the registry of one's own, by each way in, in the suite's order.\n"
    yield from _every(trial)


def _compared(trial: Trial) -> Iterator[str]:
    yield (
        "\n## Through the cache\n\nThe suite's reading part, at a registry and through a cache before it. What counts "
        "is that none is\nworse: what a registry cannot do the cache does not do for it, but what makes no sense it "
        "refuses itself.\n\n| registry | way | tests | pass | fail | differ | worse |\n|---|---|---|---|---|---|---|\n"
    )
    told = set()
    for one in trial.compared:
        if one.registry not in told:
            told.add(one.registry)
            yield f"| {one.registry} | directly | {_counts(one.direct)} | | |\n"
        yield f"| | {one.way} | {_counts(one.through)} | {len(one.differences)} | {len(one.worse)} |\n"
    differing: dict[tuple[str, Verdict, Verdict], list[str]] = {}
    for one in trial.compared:
        for before, after in one.differences:
            differing.setdefault((one.registry, before, after), []).append(one.way)
    for (registry, before, after), ways in differing.items():
        yield f"\n- {registry}, {'; '.join(ways)}: `{before.name}`\n"
        yield f"  - directly {before.status}{_why(before)}\n  - through the cache {after.status}{_why(after)}\n"


def _counts(one: Outcome) -> str:
    return f"{len(one.verdicts)} | {one.count(PASS)} | {one.count(*BAD)}"


def _every(trial: Trial) -> Iterator[str]:
    family = ""
    runs = list(trial.whole.values())
    for number, verdict in enumerate(runs[0].verdicts):
        if verdict.family != family:
            family = verdict.family
            yield f"\n### {family}\n\n| test | {' | '.join(trial.whole)} |\n|---|{'---|' * len(runs)}\n"
        same = [one.verdicts[number] for one in runs if number < len(one.verdicts)]
        shown = verdict.name.partition("/")[2] or verdict.name
        yield f"| {_cell(shown)} | {' | '.join(f'{one.status}{_why(one)}' for one in same)} |\n"


def _why(verdict: Verdict | None) -> str:
    return f": {_cell(verdict.remark)}" if verdict is not None and verdict.remark and verdict.status != PASS else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Run it, write the page, and say what came of it; exit status 1 where anything failed or differs."""
    program = os.environ.get(VARIABLE, "")
    if not program or not os.access(program, os.X_OK):
        sys.exit(f"{VARIABLE}={program!r} is no program: build the suite, {SUITE}")
    try:
        trial = run_trial(Path(program).resolve())
    except (SuiteError, FileNotFoundError) as error:
        sys.exit(str(error))
    PAGE.write_text(render(trial))
    sys.stdout.write("".join(f"{line}\n" for line in summarize(trial)))
    sys.exit(0 if trial.good else 1)


def summarize(trial: Trial) -> Iterator[str]:
    """What came of it, for who waits for it."""
    for way, one in trial.whole.items():
        yield f"{way}: {one.count(PASS)} of {len(one.verdicts)} pass, {len(one.failed)} fail, {one.count(SKIP)} skipped"
        yield from (f"  {each.status} {each.name}{_why(each)}" for each in one.failed)
    for compared in trial.compared:
        differ, worse = len(compared.differences), len(compared.worse)
        yield f"{compared.registry}, {compared.way}: {differ} verdicts differ, {worse} for the worse"
