"""What is answered at the cache's own names outside the registry API. No I/O."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from mitm_cache.welcome.facts import Facts
from mitm_cache.welcome.page import FILES, STYLE_HASH, render_html, render_text, sections
from mitm_cache.welcome.script import PATH, Script
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Response

METHODS = ("GET", "HEAD")
_TEXT = "text/plain; charset=utf-8"
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ALWAYS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", _POLICY),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


@dataclass(frozen=True, slots=True)
class _Page:
    content: bytes
    content_type: str
    headers: tuple[tuple[str, str], ...] = ()
    status: int = HTTPStatus.OK


class Welcome:
    """The pages of one cache, made when it starts."""

    def __init__(self, facts: Facts, *, ready: Callable[[], bool]) -> None:
        """`ready`: whether pulls are served now. Raises ValueError where a fact has no place in the script."""
        self.script = Script(facts)
        self._ready = ready
        page = list(sections(facts, self.script))
        by_accept = (("Vary", "Accept"),)
        self._html = _Page(render_html(page).encode(), "text/html; charset=utf-8", by_accept)
        self._text = _Page(render_text(page).encode(), _TEXT, by_accept)
        # The type is the one that browsers import a CA by, in either form (RFC 8555's is for chains of leaves).
        certificate = "application/x-x509-ca-cert"
        self._files: Mapping[str, _Page] = {
            "/ca.crt": _Page(facts.certificate, certificate, (_attached("mitm-cache.crt"),)),
            "/ca.der": _Page(facts.certificate_der, certificate, (_attached("mitm-cache.der"),)),
            PATH: _Page(self.script.content, _TEXT),  # shown, not run
        }

    def answer(self, method: str, path: str, accept: str = "") -> Response:
        """The answer to a request for a path (without query); `accept` is its Accept header."""
        if path not in ("/", *FILES):
            page = _words(f"There is {', '.join(('/', *FILES))}.", HTTPStatus.NOT_FOUND)
        elif method not in METHODS:
            allow = ("Allow", ", ".join(METHODS))
            page = _words("GET or HEAD only.", HTTPStatus.METHOD_NOT_ALLOWED, allow)
        elif path == "/":
            page = self._html if accepts_html(accept) else self._text
        elif path == "/healthz":
            page = self._health()
        else:
            page = self._files[path]
        return _respond(page, method)

    def _health(self) -> _Page:
        ready = self._ready()
        content = json.dumps({"alive": True, "ready": ready}).encode() + b"\n"
        return _Page(content, "application/json", status=HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)


class Current:
    """The pages as they are now: made again when what they tell has changed, as the CA does in a rotation."""

    def __init__(self, facts: Callable[[], Facts], *, ready: Callable[[], bool], version: Callable[[], object]) -> None:
        """`version`: equal for as long as the facts are."""
        self._facts = facts
        self._ready = ready
        self._version = version
        self._made = version()
        self._welcome = Welcome(facts(), ready=ready)

    def answer(self, method: str, path: str, accept: str = "") -> Response:
        """As `Welcome.answer`."""
        if (version := self._version()) != self._made:
            self._welcome, self._made = Welcome(self._facts(), ready=self._ready), version
        return self._welcome.answer(method, path, accept)


def accepts_html(accept: str) -> bool:
    """Whether a client asks for HTML by its name: a browser, and not a program that takes anything."""
    for item in accept.lower().split(","):
        media, *parameters = (part.strip() for part in item.split(";"))
        if media == "text/html":
            return not any(parameter.startswith("q=") and not parameter[2:].strip("0.") for parameter in parameters)
    return False


def _words(text: str, status: HTTPStatus, *headers: tuple[str, str]) -> _Page:
    return _Page(f"{text}\n".encode(), _TEXT, headers, status)


def _attached(name: str) -> tuple[str, str]:
    return "Content-Disposition", f'attachment; filename="{name}"'


def _respond(page: _Page, method: str) -> Response:
    own = (("Content-Type", page.content_type), ("Content-Length", str(len(page.content))))
    return Response(
        status=page.status,
        headers=Headers((*own, *page.headers, *_ALWAYS)),
        body=b"" if method == "HEAD" else page.content,
        outcome="LOCAL",
        reason="a page of the cache itself",
    )
