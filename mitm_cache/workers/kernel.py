"""What Python does not ask of the kernel and the C library by itself (prctl(2), malloc_trim(3))."""

import ctypes
import os
import signal
from contextlib import suppress

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


def release_memory() -> None:
    """Give the kernel back what is free between what is in use (malloc_trim(3)); does nothing without glibc."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
