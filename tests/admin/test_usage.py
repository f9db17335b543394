"""What a process uses, as it is told while there is next to nothing left to look with."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from mitm_cache.admin.usage import Usage


@contextmanager
def no_descriptor_left() -> Iterator[int]:
    """As many as there may be are open; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = len(os.listdir("/proc/self/fd")) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    taken: list[int] = []
    try:
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            yield limit
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_own() -> None:
    """Something of everything."""
    usage = Usage.own()
    assert usage.cpu > 0
    assert 0 < usage.resident < usage.virtual
    assert 0 < usage.descriptors < usage.most


def test_no_descriptor_left() -> None:
    """It is told that there is none: who tells the supervisor of a worker goes on."""
    with no_descriptor_left() as limit:
        usage = Usage.own()
    assert (usage.descriptors, usage.most) == (limit, limit)
    assert usage.cpu > 0
