"""What clients are answered: upstream's own words, content with its headers, or an error document of the cache."""

import re
from dataclasses import replace
from http import HTTPStatus

from mitm_cache.cache.blobs import Blob
from mitm_cache.cache.entry import Head, Link
from mitm_cache.errors import (
    IntegrityError,
    LoginError,
    MitmCacheError,
    OfflineError,
    StoreError,
    TokenError,
    UpstreamError,
)
from mitm_cache.oci import problem
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.operation import Manifest, Upload, repository_of
from mitm_cache.rights import Verdict, judge
from mitm_cache.upstream.curl import Answer
from mitm_cache.wire.basic import CHALLENGE
from mitm_cache.wire.headers import HOP_BY_HOP, Headers
from mitm_cache.wire.message import FileBody, Request, Response, Source
from mitm_cache.wire.ranges import Span, Unsatisfiable, resolve

API_VERSION = ("Docker-Distribution-Api-Version", "registry/2.0")
SMALL = 64 << 10
"""Bytes of a body that is not worth moving as a file."""
NOT_PASSED_BACK = HOP_BY_HOP | {"content-length", "via", "alt-svc", "strict-transport-security", "content-encoding"}
"""An upstream answer's headers that are about the connection or the host, not about the content."""

_ETAG = re.compile(r'(?:W/)?("[^"]*")')
_CONTENT = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)
_OF_CONTENT = frozenset({"content-length", "content-type", "content-range", "accept-ranges"})
NOT_RELAYED = NOT_PASSED_BACK - {"content-length", "content-encoding"}
"""The same of an answer whose body is passed on as it is."""


def explain(error: MitmCacheError, request: Request | None) -> Response:
    """The answer to what went wrong: an OCI error document that says so."""
    headers = [API_VERSION]
    if isinstance(error, UpstreamError) and error.retry_after:
        headers.append(("Retry-After", error.retry_after))
    if isinstance(error, LoginError):
        headers.append(("WWW-Authenticate", _challenge(error, request)))
    mine = isinstance(error, UpstreamError | IntegrityError | StoreError) and not isinstance(error, OfflineError)
    return _problem(error, headers, request, outcome="ERROR" if mine else "REFUSED")


def _challenge(error: LoginError, request: Request | None) -> str:
    """How to log in: by a token where the cache has such, and by a password otherwise."""
    if request is None or request.realm is None:
        return CHALLENGE
    scope, repository = "", repository_of(request.operation)
    if repository is not None:
        reads = request.method in ("GET", "HEAD") and not isinstance(request.operation, Upload)
        scope = f"repository:{request.given}{repository}:{'pull' if reads else 'pull,push'}"
    if isinstance(error, TokenError):
        return request.realm.challenge(scope=scope, error="invalid_token", reason=error.message)
    if request.bearer:
        # Its token is good, and not enough: without this clients would try others in vain, and Docker shows no reason.
        return request.realm.challenge(scope=scope, error="insufficient_scope", reason=error.message)
    return request.realm.challenge(scope=scope)


def _problem(error: MitmCacheError, headers: list[tuple[str, str]], request: Request | None, outcome: str) -> Response:
    content = problem.document(error.code, error.message)
    headers = [*headers, ("Content-Type", "application/json")]
    return small(error.status, headers, content, request, outcome=outcome, reason=error.message)


def small(
    status: int, headers: list[tuple[str, str]], content: bytes, request: Request | None, *, outcome: str, reason: str
) -> Response:
    """A short answer of the cache itself."""
    fields = Headers([*headers, ("Content-Length", str(len(content)))])
    body = b"" if request is not None and request.method == "HEAD" else content
    return Response(status=status, headers=fields, body=body, outcome=outcome, reason=reason)


def pass_back(answer: Answer, request: Request, outcome: str, reason: str) -> Response:
    """Upstream's own answer, with what belongs to its connection left out."""
    headers = answer.headers.without(NOT_PASSED_BACK)
    body = b"" if request.method == "HEAD" else answer.body
    if request.method != "HEAD":
        headers += Headers([("Content-Length", str(len(body)))])
    return Response(
        status=answer.status, headers=headers, body=body, outcome=outcome, reason=reason, bytes_in=len(answer.body)
    )


def switching(headers: Headers) -> Response:
    """Upstream's 101, with these headers: a WebSocket begins."""
    own = Headers([("Connection", "Upgrade"), ("Upgrade", "websocket")])
    return Response(
        status=HTTPStatus.SWITCHING_PROTOCOLS,
        headers=headers.without(NOT_PASSED_BACK) + own,
        outcome="RELAY",
        reason="a WebSocket",
    )


def refuse(answer: Answer, request: Request) -> Response:
    """Upstream's own no. Asked by HEAD it brings no words, and clients want to read some."""
    response = pass_back(answer, request, "REFUSED", f"upstream answered {answer.status}")
    if request.method == "GET" and not answer.body:
        unknown = "MANIFEST_UNKNOWN" if isinstance(request.operation, Manifest) else "BLOB_UNKNOWN"
        code = {401: "UNAUTHORIZED", 403: "DENIED"}.get(answer.status, unknown)
        response.body = problem.document(code, f"{answer.origin} answered {answer.status} to this client")
        own = [("Content-Type", "application/json"), ("Content-Length", str(len(response.body)))]
        response.headers = response.headers.without(["content-type", "content-length"]) + Headers(own)
    return response


def _fields(digest: Digest, media_type: str, length: int) -> list[tuple[str, str]]:
    return [
        API_VERSION,
        ("Docker-Content-Digest", str(digest)),
        ("Content-Type", media_type),
        ("Content-Length", str(length)),
        ("ETag", f'"{digest}"'),
        ("Accept-Ranges", "bytes"),
    ]


def content_head(link: Link, *, outcome: str, reason: str) -> Response:
    """The headers of content, without a body."""
    fields = _fields(link.digest, link.media_type, link.size)
    return Response(status=200, headers=Headers(fields), outcome=outcome, reason=reason, digest=str(link.digest))


def content(request: Request, digest: Digest, source: Source, head: Head, *, outcome: str, reason: str) -> Response:
    """The content, or the range of it that was asked for, as a body that is read while it is sent."""
    try:
        same = request.headers.get("if-range") in (None, f'"{digest}"')  # RFC 9110, 13.1.5
        span = resolve(request.headers.get("range") if same else None, head.size)
    except Unsatisfiable:
        source.close()
        headers = Headers([API_VERSION, ("Content-Range", f"bytes */{head.size}"), ("Content-Length", "0")])
        return Response(status=416, headers=headers, outcome=outcome, reason="range beyond the end", digest=str(digest))
    sent = span or Span.whole(head.size)
    fields = _fields(digest, head.media_type, sent.length)
    if span is not None:
        fields.append(("Content-Range", span.content_range))
    return Response(
        status=206 if span else 200,
        headers=Headers(fields),
        body=_small_body(source, sent) or FileBody(source, sent),
        outcome=outcome,
        reason=reason,
        digest=str(digest),
    )


def unless_known(response: Response, request: Request) -> Response:
    """The answer, or 304 in place of content that the client has, as its If-None-Match says (RFC 9110, 13.1.2).

    `*` is passed over: it names no content that the client has.
    """
    given = request.headers.get_all("if-none-match")
    etag = response.headers.get("etag")
    if not given or etag is None or response.status not in _CONTENT or request.method not in ("GET", "HEAD"):
        return response
    if etag.removeprefix("W/") not in _ETAG.findall(",".join(given)):
        return response
    response.close()
    headers = response.headers.without(_OF_CONTENT)
    return replace(response, status=HTTPStatus.NOT_MODIFIED, headers=headers, body=b"")


def _small_body(source: Source, span: Span) -> bytes | None:
    """What is small and in memory already is sent with its head; moving it as a file would cost more."""
    data = source.at_hand(span.start, span.length) if isinstance(source, Blob) and span.length <= SMALL else None
    if data:
        source.close()
    return data


def stale(response: Response, age: float | None) -> Response:
    """An answer that upstream could not be asked about, marked as such (RFC 9111, 5.1; RFC 7234, 5.5.1)."""
    aged = [("Age", f"{age:.0f}")] if age is not None else []
    response.headers += Headers([*aged, ("Warning", '110 mitm-cache "Response is Stale"')])
    return response


def outcome_of(answer: Answer) -> str:
    """The outcome of passing an upstream answer on."""
    return "REFUSED" if judge(answer.status) is Verdict.NO else "ERROR" if not answer.ok else "RELAY"


def unavailable(answer: Answer) -> UpstreamError:
    """The error for an upstream answer that says nothing about the content: 429 and 5xx."""
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        return UpstreamError(
            f"{answer.origin} answered 429: its limit is reached",
            status=429,
            code="TOOMANYREQUESTS",
            retry_after=answer.headers.get("retry-after"),
        )
    return UpstreamError(f"{answer.origin} answered {answer.status}", retry_after=answer.headers.get("retry-after"))
