"""Requests and responses: what they must not give away, and that a body is let go."""

import os
from pathlib import Path

import pytest

from mitm_cache.cache.blobs import Blob
from mitm_cache.oci.operation import Other
from mitm_cache.registries import DOCKER_HUB
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Credential, FileBody, Request, Response
from mitm_cache.wire.ranges import Span

SECRET = "czNjcjN0"


def test_credential_is_not_shown() -> None:
    """No way of printing a credential shows it, and its fingerprint is not it either."""
    credential = Credential(f"Basic {SECRET}")
    assert credential.header == f"Basic {SECRET}"
    for shown in (repr(credential), str(credential), f"{credential}", f"{[credential]}", credential.fingerprint):
        assert SECRET not in shown


def test_fingerprints() -> None:
    """The same header has the same fingerprint, another has another."""
    assert Credential("Basic a").fingerprint == Credential("Basic a").fingerprint
    assert Credential("Basic a").fingerprint != Credential("Basic b").fingerprint


def test_request_shows_no_secret() -> None:
    """A request in a log or a traceback gives away neither its headers, its credential nor a password it posts."""
    request = Request(
        listener="tls",
        client="192.0.2.1",
        method="POST",
        registry=DOCKER_HUB,
        operation=Other(),
        target="/token",
        headers=Headers([("Authorization", SECRET)]),
        credential=Credential(SECRET),
    )
    assert SECRET not in repr(request)
    assert "/token" in repr(request)


def test_response_shows_no_secret() -> None:
    """A response that holds a token does not print it."""
    response = Response(
        status=200, headers=Headers([("Location", SECRET)]), body=f'{{"token":"{SECRET}"}}'.encode(), outcome="RELAY"
    )
    assert SECRET not in repr(response)


def test_close(tmp_path: Path) -> None:
    """Closing a response closes the file that it would have been sent from, and is harmless for bytes."""
    file = tmp_path / "blob"
    file.write_bytes(b"content")
    blob = Blob(os.open(file, os.O_RDONLY))
    fd = blob.fileno()
    Response(status=200, headers=Headers(), body=FileBody(blob, Span.whole(7)), outcome="HIT").close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    Response(status=200, headers=Headers(), body=b"content", outcome="HIT").close()
