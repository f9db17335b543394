"""The OCI distribution-spec's conformance suite, a program outside the repository, and what it says.

Built in `conformance/` of https://github.com/opencontainers/distribution-spec with `go build -buildvcs=true .`.
"""

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

PASS, SKIP, OFF = "Pass", "Skip", "Disabled"
BAD = ("FAIL", "Error")
ROOT = "OCI Conformance Test"
TIMEOUT = 600.0
_LINE = re.compile(rf"^ *{ROOT}/(.+): (Pass|Skip|Disabled|FAIL|Error)$")
_SUM = re.compile(r"^  (.+?)\.*: +(\w+)$", re.MULTILINE)
_SETTING = re.compile(r"^ +(version|commit): (.+)$", re.MULTILINE)
_REMARK = re.compile(r"^ *- (.+)$")


class SuiteError(Exception):
    """The suite did not run to its end; the message holds what it said."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One test: the path of its names, what came of it, and why where it did not pass."""

    name: str
    status: str
    remark: str = ""

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole run: every test's verdict, and the suite's own sums by API and by kind of data."""

    verdicts: tuple[Verdict, ...]
    apis: Mapping[str, str]
    data: Mapping[str, str]
    version: str
    commit: str

    @property
    def failed(self) -> list[Verdict]:
        return [each for each in self.verdicts if each.status in BAD]

    def count(self, *statuses: str) -> int:
        return sum(each.status in statuses for each in self.verdicts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Existing:
    """What a registry that is only read holds already."""

    repository: str
    tags: tuple[str, ...]
    manifests: tuple[str, ...]
    blobs: tuple[str, ...]
    subjects: tuple[str, ...] = field(default=())

    def settings(self, prefix: str = "") -> dict[str, str]:
        """The suite's environment for reading it and nothing else; `prefix` stands before the repository."""
        off = ("PUSH", "BLOBS_DELETE", "BLOBS_UPLOAD_CANCEL", "MANIFESTS_DELETE", "TAGS_DELETE")
        return {f"OCI_API_{name}": "false" for name in off} | {
            "OCI_REPO1": f"{prefix}{self.repository}",
            "OCI_REPO2": f"{prefix}{self.repository}",
            "OCI_RO_DATA_TAGS": " ".join(self.tags),
            "OCI_RO_DATA_MANIFESTS": " ".join(self.manifests),
            "OCI_RO_DATA_BLOBS": " ".join(self.blobs),
            "OCI_RO_DATA_REFERRERS": " ".join(self.subjects),
        }


def run(binary: Path, folder: Path, registry: str, settings: Mapping[str, str]) -> Outcome:
    """Run it against a registry, with `folder` for its results. Raises SuiteError where it does not come to its end."""
    folder.mkdir(parents=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OCI_")}
    done = subprocess.run(
        [binary],
        cwd=folder,  # away from configurations of its own
        env=kept | {"OCI_REGISTRY": registry, "OCI_VERSION": "1.1", "OCI_RESULTS_DIR": str(folder)} | dict(settings),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    # Its exit status is 0 too where it could not begin, and its files are not written where it only reads.
    if "\nData conformance:\n" not in done.stdout:
        raise SuiteError(f"{binary} against {registry}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return read(done.stdout)


def read(said: str) -> Outcome:
    """What the suite prints, which is for people, as values."""
    tests, _, rest = said.partition("\nConfiguration:\n")
    configuration, _, sums = rest.partition("\nOCI Conformance Result: ")
    apis, _, data = sums.partition("\nData conformance:\n")
    settings = dict(_SETTING.findall(configuration))
    return Outcome(
        tuple(read_verdicts(tests.splitlines())),
        dict(_SUM.findall(apis.partition("\nAPI conformance:\n")[2])),
        dict(_SUM.findall(data)),
        settings["version"].strip('"'),
        settings["commit"],
    )


def read_verdicts(lines: Iterable[str]) -> Iterator[Verdict]:
    """The tests in what the suite prints: the leaves of its tree, in their order."""
    waiting: Verdict | None = None
    for line in lines:
        if found := _LINE.match(line):
            if waiting is not None and not found[1].startswith(f"{waiting.name}/"):
                yield waiting
            waiting = Verdict(found[1], found[2])
        elif waiting is not None and not waiting.remark and (said := _REMARK.match(line)):
            waiting = replace(waiting, remark=said[1])
    if waiting is not None:
        yield waiting
