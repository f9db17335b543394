"""From a plan to a node's files and back: what differs, then the writing, with a record that `--undo` reads."""

import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mitm_cache.errors import ConfigError
from mitm_cache.node.docker import DAEMON, take_out_daemon
from mitm_cache.node.files import GoneError, Local, Place
from mitm_cache.node.lines import show_diff, take_out
from mitm_cache.node.model import Files, Order, Plan, Step
from mitm_cache.node.state import Record, State

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
TIMEOUT = 300
"""Seconds for one command: a daemon may take its time to stop."""

type Planner = Callable[[Files], Plan]


@dataclass(frozen=True, slots=True)
class Edit:
    """One file from what it holds now to what it should (None: no file)."""

    path: str
    now: str | None
    wanted: str | None
    steps: tuple[Step, ...]

    @property
    def diff(self) -> str:
        return show_diff(self.path, self.now, self.wanted)


@dataclass(slots=True)
class Work:
    """Everything that one run does in one place, decided and not yet done."""

    edits: list[Edit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # what could not be undone, and why
    released: list[str] = field(default_factory=list)  # files of ours that are undone by this
    shared: list[str] = field(default_factory=list)  # files that another target still needs
    wanted: dict[str, tuple[Step, ...]] = field(default_factory=dict)  # every file of the plan

    @property
    def steps(self) -> list[Step]:
        """What makes the edits take effect, in order, each once; a restart makes a reload needless."""
        found = sorted({step for edit in self.edits for step in edit.steps})
        restarted = {step.command[-1] for step in found if "restart" in step.command}
        return [step for step in found if "reload" not in step.command or step.command[-1] not in restarted]


class _Changed(ConfigError):
    """Lines that we made were changed by somebody."""


class _Without:
    """A place's files as they would be without us."""

    def __init__(self, place: Place, state: State) -> None:
        self._place, self._state = place, state

    def read(self, path: str) -> str | None:
        now, record = self._place.read(path), self._state.records.get(path)
        return now if record is None or now is None else undone(path, self._state.before(record), record.after, now)

    def names(self, folder: str) -> tuple[str, ...]:
        return self._place.names(folder)


def undone(path: str, before: str | None, after: str, now: str) -> str | None:
    """What a file holds without what we did to it; None for no file. Raises ConfigError where that cannot be told."""
    if now in (before, after):
        return before
    text = take_out_daemon(before, after, now) if path == DAEMON else take_out(before or "", after, now)
    if text is None:
        raise _Changed(
            f"{path}: lines that setup wrote were changed since, so it is left as it is; take them out by hand"
        )
    return None if before is None and not text.strip() else text


def decide(target: str, planner: Planner, place: Place, state: State) -> Work:
    """What setting up a target changes; what an earlier set-up of it made and this one does not want is undone."""
    made = planner(_Without(place, state))
    work = Work(notes=list(made.notes), wanted={change.path: change.steps for change in made.changes})
    for change in made.changes:
        now = place.read(change.path)
        if now != change.text:
            work.edits.append(Edit(change.path, now, change.text, change.steps))
    _release(work, {target}, place, state, but=set(work.wanted))
    return work


def decide_undo(targets: set[str] | None, place: Place, state: State) -> Work:
    """What undoing these targets changes; None for all. A container that cannot be asked keeps nobody from the rest."""
    every = {target for record in state.records.values() for target in record.targets}
    work = Work()
    try:
        _release(work, every if targets is None else targets, place, state, but=set())
    except GoneError:
        return Work(notes=["It is there no more, and what was set up in it went with it."], released=[*state.records])
    except ConfigError as error:
        if not place.name:
            raise
        return Work(kept=[f"{error.message}; what was set up there stays: start it, then undo again"])
    return work


def _release(work: Work, targets: set[str], place: Place, state: State, *, but: set[str]) -> None:
    for path, record in state.records.items():
        if path in but or not targets.intersection(record.targets):
            continue
        if set(record.targets) - targets:
            work.shared.append(path)
            work.notes.append(f"{path} stays as it is for {', '.join(sorted(set(record.targets) - targets))}.")
            continue
        before, now = state.before(record), place.read(path)
        if now is None:
            if before is not None:
                work.notes.append(f"{path} was removed by somebody since, and is not put back.")
            work.released.append(path)
            continue
        try:
            wanted = undone(path, before, record.after, now)
        except _Changed as error:
            backup = state.backup(record)
            work.kept.append(error.message + (f" ({backup} is how it was before)" if backup else ""))
            continue
        if now not in (before, record.after):
            work.notes.append(f"{path} was changed by somebody since: only what setup wrote is taken out of it.")
        work.released.append(path)
        if now != wanted:
            work.edits.append(Edit(path, now, wanted, tuple(record.steps)))


def perform(work: Work, targets: set[str], place: Place, state: State) -> None:
    """Do it: first the record, then the files, so that what was done can be undone in any case. Raises ConfigError."""
    for edit in work.edits:
        place.writable(edit.path)
    if _remember(work, targets, place, state):
        state.save()
    for edit in work.edits:
        _write(edit, place, state)
    if not work.released and not work.shared:
        return
    for path in work.shared:
        state.records[path].targets = [one for one in state.records[path].targets if one not in targets]
    folders = [folder for path in work.released for folder in state.records[path].folders]
    needed = {folder for path, one in state.records.items() if path not in work.released for folder in one.folders}
    for path in work.released:
        del state.records[path]
    for folder in sorted(set(folders), key=len, reverse=True):
        place.remove_folder(folder)
    # A folder that stays for another file is that file's to remove.
    for path, record in state.records.items():
        record.folders = sorted(
            {*record.folders, *(one for one in {*folders, *needed} if path.startswith(f"{one}/"))}, key=len
        )
    state.save()


def _remember(work: Work, targets: set[str], place: Place, state: State) -> bool:
    """Put every wanted file that is ours into the manifest; whether that changed it."""
    edits = {edit.path: edit for edit in work.edits}
    different = False
    for path, steps in work.wanted.items():
        record, edit = state.records.get(path), edits.get(path)
        if record is None and edit is None:
            continue  # it held this before us
        real = place.real(path) if isinstance(place, Local) else None
        if record is None:
            assert edit is not None
            assert edit.wanted is not None
            number = None if edit.now is None else state.keep(edit.now, real)
            record = Record([], edit.wanted, number, place.missing_folders(path))
            state.records[path] = record
            different = True
        elif edit is not None and edit.wanted is not None:
            before = state.before(record)
            base = None if edit.now is None else undone(path, before, record.after, edit.now)
            if base != before:
                record.backup = None if base is None else state.keep(base, real)
            record.after, different = edit.wanted, True
        for target in targets - set(record.targets):
            record.targets.append(target)
            different = True
        if not set(steps) <= set(record.steps):
            record.steps = sorted({*record.steps, *steps})
            different = True
    return different


def _write(edit: Edit, place: Place, state: State) -> None:
    if edit.wanted is None:
        place.remove(edit.path)
        return
    record = state.records.get(edit.path)
    # Undoing what nobody touched since: its mode, owner and times come back too.
    exact = record is not None and edit.now == record.after and edit.wanted == state.before(record)
    place.write(edit.path, edit.wanted, state.backup(record) if record is not None and exact else None)


def run(steps: Iterable[Step], *, restart: bool) -> list[Step]:
    """Run the steps that are to be run now; those left to the reader. Raises ConfigError where one fails."""
    left: list[Step] = []
    for step in steps:
        if step.order is not Order.STORE and not restart:
            left.append(step)
            continue
        try:
            done = subprocess.run(
                step.command,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
                env={**os.environ, "PATH": _PATH},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            words = error.strerror if isinstance(error, OSError) else "it does not end"
            raise ConfigError(
                f"the files are written, but `{step}` failed: {words}; do what it does by hand"
            ) from error
        if done.returncode:
            raise ConfigError(f"the files are written, but `{step}` failed: {(done.stderr or done.stdout).strip()}")
    return left


def local(root: Path) -> tuple[Local, State]:
    """The place and the record of this machine, or of what is below a root."""
    place = Local(root)
    return place, State(place.root)
