"""What a check found: one line, with its cure unless all is well."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How bad it is. Only FAIL makes the whole fail."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is the kind of check, `subject` what was looked at; `cure` is a command, or a key and its value."""

    status: Status
    check: str
    subject: str
    words: str
    cure: str = ""


def ok(check: str, subject: str, words: str) -> Finding:
    """All is well."""
    return Finding(Status.OK, check, subject, words)


def warn(check: str, subject: str, words: str, cure: str) -> Finding:
    """Pulls work, perhaps not all of them, or not for long."""
    return Finding(Status.WARN, check, subject, words, cure)


def fail(check: str, subject: str, words: str, cure: str) -> Finding:
    """Pulls do not work, or go past the cache."""
    return Finding(Status.FAIL, check, subject, words, cure)


def skip(check: str, subject: str, words: str, cure: str) -> Finding:
    """It could not be looked at, or has no meaning here; `cure` tells how it would."""
    return Finding(Status.SKIP, check, subject, words, cure)


def merge(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The same said of several subjects becomes one finding, at the place of the first."""
    together: dict[tuple[Status, str, str, str], list[str]] = {}
    for each in findings:
        together.setdefault((each.status, each.check, each.words, each.cure), []).append(each.subject)
    for (status, check, words, cure), subjects in together.items():
        yield Finding(status, check, ", ".join(dict.fromkeys(subjects)), words, cure)
