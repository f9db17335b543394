"""What Python does not ask of the kernel by itself (prctl(2))."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def end_with(parent: int) -> None:
    """Have this process killed when its parent ends, however that ends: nobody else would accept at its sockets.

    Raises ProcessLookupError where the parent has ended already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError(f"process {parent} has ended")


def forbid_privileges() -> None:
    """Have no program that is started from here on, set-uid ones included, get rights that this process lacks."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
