"""Answers that break off are let go of, whole: their TLS, their buffers, and what they were about."""

import gc
from pathlib import Path

import pytest
from OpenSSL import SSL

from mitm_cache.demo.image import KIB
from tests.fakes import faults
from tests.fakes.big import big_image
from tests.fakes.faults import Fault
from tests.fakes.registry import LyingUpstream
from tests.faults.pulls import Verdict, judge
from tests.lab.process import wait_until
from tests.serving import in_thread

REPOSITORY = "team/app"
BROKEN = 20


def connections() -> int:
    """TLS connections that something in this process still has."""
    gc.collect()
    return sum(isinstance(each, SSL.Connection) for each in gc.get_objects())


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("object", faults.wrong_bytes()), ("token", faults.cut_after(3))],
    ids=["a wrong digest", "a relay that is cut"],
)
def test_what_is_cut_is_let_go_of(tmp_path: Path, kind: str, fault: Fault) -> None:
    """However many were cut, none of them is kept."""
    with LyingUpstream(tmp_path) as upstream, in_thread(tmp_path / "data", upstream) as cache:
        before = connections()
        upstream.lie(kind, fault)
        for number in range(BROKEN):
            image = big_image(100 * KIB + number)
            upstream.registry.put(REPOSITORY, image, "1")
            digest, blob = max(image.blobs.items(), key=lambda item: item[1].size)
            target = f"/v2/{REPOSITORY}/blobs/{digest}" if kind == "object" else "/token?service=demo"
            with cache.client() as client:
                assert judge(client, "GET", target, digest, blob.size).verdict is Verdict.CUT
        wait_until(lambda: connections() <= before + 2, "the end of the connections", seconds=10, tick=0.2)
