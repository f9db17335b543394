"""Runs checks side by side, each with a time limit. A check that breaks is a finding, never a traceback."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mitm_cache.doctor.finding import Finding, fail, warn
from mitm_cache.doctor.scene import SECONDS, STEP
from mitm_cache.errors import MitmCacheError


@dataclass(frozen=True, slots=True)
class Check:
    """Looks at one subject. `late` is the cure where it does not come back in time, a failure if it is `strict`."""

    name: str
    subject: str
    run: Callable[[], Iterable[Finding]]
    late: str = "look whether the disk or the network of this machine hangs (dmesg, ip route)"
    strict: bool = True


def examine(checks: Sequence[Check], *, seconds: float = SECONDS) -> list[Finding]:
    """What all checks found, in their order, after `seconds` at most."""
    results: queue.SimpleQueue[tuple[int, list[Finding]]] = queue.SimpleQueue()

    def work(number: int, check: Check) -> None:
        results.put((number, _run(check)))

    for number, check in enumerate(checks):
        # Daemons: nobody waits for one that hangs in a system call.
        threading.Thread(target=work, args=(number, check), daemon=True, name=f"doctor {check.name}").start()
    found: dict[int, list[Finding]] = {}
    deadline = time.monotonic() + seconds
    while len(found) < len(checks):
        try:
            number, findings = results.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[number] = findings
    return [finding for number, check in enumerate(checks) for finding in found.get(number) or _late(check, seconds)]


def within[T](call: Callable[[], T], *, default: T, seconds: float = STEP) -> T:
    """What a call gives, or `default` where it hangs, as on a disk that is gone. It must not raise."""
    results: queue.SimpleQueue[T] = queue.SimpleQueue()
    threading.Thread(target=lambda: results.put(call()), daemon=True, name="doctor").start()
    try:
        return results.get(timeout=seconds)
    except queue.Empty:
        return default


def _run(check: Check) -> list[Finding]:
    try:
        return list(check.run()) or [fail(check.name, check.subject, "the check said nothing", REPORT)]
    except MitmCacheError as error:
        return [fail(check.name, check.subject, error.message, "set what the message names, then run this again")]
    except Exception as error:  # noqa: BLE001 - a door: one check that breaks must not take the others with it
        return [fail(check.name, check.subject, f"the check broke: {type(error).__name__}: {error}", REPORT)]


REPORT = "report this line as a bug of mitm-cache doctor; nothing is known of what it looks at"


def _late(check: Check, seconds: float) -> list[Finding]:
    return [(fail if check.strict else warn)(check.name, check.subject, f"no end within {seconds:g} s", check.late)]
