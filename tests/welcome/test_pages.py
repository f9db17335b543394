"""What the cache answers at its own names."""

import ssl
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html import escape
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.ca import CertificateAuthority
from mitm_cache.registries import TABLE, Known, Registry
from mitm_cache.welcome.facts import Facts, Place
from mitm_cache.welcome.page import Code, Links, Section, Words, render_html
from mitm_cache.welcome.pages import Welcome, accepts_html
from mitm_cache.wire.message import Response
from tests.welcome.places import make_facts

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
PATHS = ("/", "/ca.crt", "/ca.der", "/setup.sh", "/healthz")
VOID = {"meta", "link", "br", "img", "hr"}


@pytest.fixture(scope="session")
def welcome(facts: Facts) -> Welcome:
    return Welcome(facts, ready=lambda: True)


def content(response: Response) -> bytes:
    assert isinstance(response.body, bytes)
    return response.body


def first_page(facts: Facts, accept: str = "") -> str:
    return content(Welcome(facts, ready=lambda: True).answer("GET", "/", accept)).decode()


class Walk(HTMLParser):
    """Every element closed in the order it was opened; what they hold and refer to is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.references: list[str] = []
        self.text: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.references += [value or "" for name, value in attrs if name in {"href", "src", "action", "style"}]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)


def walk(page: str) -> Walk:
    parser = Walk()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


class TestImagesOfOnesOwn:
    """What the page tells of the local registry; tools that push show its address where they fail."""

    def test_none(self, facts: Facts) -> None:
        assert "Images of your own" not in first_page(facts)

    def test_every_name(self, facts: Facts) -> None:
        """The first of them in the line to copy; and by path, which is always there at the mirror."""
        local = Registry("local", "localhost:5000", aliases=("registry.lan",), prefix="mine")
        page = first_page(replace(facts, known=Known([*TABLE, local])))
        for name in ("localhost:5000", "registry.lan", "192.0.2.10:5000/mine", "192.0.2.10:5000/local"):
            assert f"    {name}\n" in page
        assert "docker push localhost:5000/app:1" in page

    def test_a_prefix_alone(self, facts: Facts) -> None:
        local = Registry("local", "local", prefix="mine")
        page = first_page(replace(facts, known=Known([*TABLE, local])))
        assert "docker push 192.0.2.10:5000/mine/app:1" in page


class TestFirstPage:
    def test_html(self, welcome: Welcome) -> None:
        """A browser gets well-formed HTML without script, whose links all lead to something that is here."""
        response = welcome.answer("GET", "/", BROWSER)
        assert response.headers.get("content-type") == "text/html; charset=utf-8"
        page = content(response).decode()
        assert page.startswith("<!DOCTYPE html>")
        seen = walk(page)
        assert not {"script", "img", "link", "iframe", "form"} & set(seen.seen)
        assert {"html", "head", "title", "body", "h1", "h2", "pre"} <= set(seen.seen)
        assert sorted(seen.references) == sorted(PATHS[1:])
        assert all(welcome.answer("GET", path).status == 200 for path in seen.references)

    def test_policy(self, welcome: Welcome) -> None:
        """The policy lets in the page's own style, by its hash, and nothing else."""
        response = welcome.answer("GET", "/", BROWSER)
        [style] = walk(content(response).decode()).text["style"]
        policy = response.headers.get("content-security-policy") or ""
        assert policy.split("; ")[0] == "default-src 'none'"
        assert f"style-src 'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" in policy
        assert "unsafe" not in policy

    def test_text(self, welcome: Welcome, facts: Facts) -> None:
        """A terminal gets the same words, and caches keep the two apart."""
        response = welcome.answer("GET", "/", "*/*")
        assert response.headers.get("content-type") == "text/plain; charset=utf-8"
        assert response.headers.get("vary") == "Accept"
        text = content(response).decode()
        page = walk(first_page(facts, BROWSER))
        for words in (*page.text["h2"], *page.text["h1"]):
            assert f"\n{words}\n" in f"\n{text}"
        for code in page.text["code"]:
            assert all(f"    {line}\n" in text for line in code.split("\n"))
        assert all(len(line) <= 100 for line in text.split("\n") if not line.startswith("    "))

    @pytest.mark.parametrize("accept", ["", BROWSER])
    def test_fingerprint(self, facts: Facts, welcome: Welcome, accept: str) -> None:
        """It tells the CA's fingerprint, and lines that take this script and no other."""
        page = first_page(facts, accept)
        assert facts.fingerprint in page
        for way in ("hosts", "mirror"):
            line = welcome.script.line(way)
            assert (escape(line) if accept else line) in page

    def test_ports(self, authority: CertificateAuthority) -> None:
        """What is told is true for the ports that were bound."""
        page = first_page(make_facts(authority, mirror=Place("2001:db8::7", 5001), connect=Place("192.0.2.7", 8888)))
        assert '{"registry-mirrors": ["http://[2001:db8::7]:5001"]}' in page
        assert '[host."http://[2001:db8::7]:5001"]' in page
        assert 'location = "[2001:db8::7]:5001/quay.io"' in page
        assert "HTTPS_PROXY=http://192.0.2.7:8888" in page
        assert ":5000" not in page
        assert ":3128" not in page

    def test_high_ports(self, authority: CertificateAuthority) -> None:
        """Where names cannot lead here, nobody is told so, and nodes are set up for the mirror."""
        high = make_facts(authority, tls=Place("192.0.2.10", 8443), clear=Place("192.0.2.10", 8080))
        page = first_page(high)
        assert "http://192.0.2.10:8080/setup.sh" in page
        assert ' sh "$f" mirror ' in page
        assert ' sh "$f" hosts ' not in page
        assert "the names lead here" not in page

    def test_proxy_only(self, authority: CertificateAuthority) -> None:
        """With no way that the script knows, there is no line for it."""
        page = first_page(make_facts(authority, tls=None, mirror=None))
        assert "setup.sh |" not in page
        assert '"$f"' not in page
        assert "registry-mirrors" not in page
        assert "HTTPS_PROXY=http://192.0.2.10:3128" in page

    def test_nothing_in_clear(self, authority: CertificateAuthority) -> None:
        """Where the script cannot be fetched in clear, no line does."""
        page = first_page(make_facts(authority, clear=None, mirror=None))
        assert '"$f"' not in page
        assert "http://192.0.2.10/" not in page

    @given(words=st.text(alphabet="<>&'\"/ab=;#!-", min_size=1))
    def test_escaping(self, words: str) -> None:
        """Whatever a fact holds, it stays words."""
        section = Section(words, (Words(words), Code(words), Links({"/": words})))
        seen = walk(render_html([section]))
        assert {"".join(seen.text[tag]) for tag in ("title", "h1", "p", "code")} == {words}
        assert "".join(seen.text["li"]) == f" {words}"
        assert set(seen.seen) == {
            "html", "head", "meta", "title", "style", "body", "section", "h1", "p", "pre", "code", "ul", "li", "a",
        }  # fmt: skip

    def test_what_a_script_cannot_hold(self, facts: Facts) -> None:
        """A fact that the shell could take for more than a word is refused when the service starts."""
        with pytest.raises(ValueError, match="VERSION"):
            Welcome(replace(facts, version="1'; reboot '"), ready=lambda: True)


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("TEXT/HTML;charset=utf-8", True),
        ("text/plain, text/html;q=0.5", True),
        ("text/html;q=0", False),
        ("text/html; q=0.000, */*", False),
        ("*/*", False),
        ("", False),
        ("text/*", False),
        ("application/json", False),
        ("text/htmlx", False),
    ],
)
def test_accept(accept: str, html: bool) -> None:
    """HTML is for those who ask for it by name."""
    assert accepts_html(accept) is html


class TestFiles:
    def test_certificate(self, welcome: Welcome, authority: CertificateAuthority) -> None:
        """The CA in both forms, for a browser to import."""
        pem, der = welcome.answer("GET", "/ca.crt"), welcome.answer("GET", "/ca.der")
        assert content(pem) == authority.certificate_path.read_bytes()
        assert ssl.PEM_cert_to_DER_cert(content(pem).decode()) == content(der)
        assert sha256(content(der)).hexdigest().upper() == authority.fingerprint.replace(":", "")
        for answer in (pem, der):
            assert answer.headers.get("content-type") == "application/x-x509-ca-cert"
            assert (answer.headers.get("content-disposition") or "").startswith("attachment")

    def test_no_key(self, welcome: Welcome) -> None:
        """The key is nowhere."""
        assert not any(b"PRIVATE" in content(welcome.answer("GET", path)) for path in PATHS)

    def test_script(self, welcome: Welcome, facts: Facts) -> None:
        """The script's bytes are those whose SHA-256 is told, every time, in every process."""
        script = content(welcome.answer("GET", "/setup.sh"))
        assert sha256(script).hexdigest() == welcome.script.sha256
        assert content(Welcome(facts, ready=lambda: False).answer("GET", "/setup.sh")) == script

    @pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
    def test_health(self, facts: Facts, ready: bool, status: int) -> None:
        """Whether pulls are served, as it is when asked."""
        state = [not ready]
        welcome = Welcome(facts, ready=lambda: state[0])
        state[0] = ready
        response = welcome.answer("GET", "/healthz")
        assert response.status == status
        assert content(response) == f'{{"alive": true, "ready": {str(ready).lower()}}}\n'.encode()


class TestForm:
    @pytest.mark.parametrize("path", [*PATHS, "/nothing"])
    @pytest.mark.parametrize("accept", ["", BROWSER])
    def test_head(self, welcome: Welcome, path: str, accept: str) -> None:
        """HEAD tells what GET would, without the body."""
        got, told = welcome.answer("GET", path, accept), welcome.answer("HEAD", path, accept)
        assert told.headers.pairs == got.headers.pairs
        assert told.status == got.status
        assert content(told) == b""
        assert got.headers.get("content-length") == str(len(content(got)))

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", ""])
    @pytest.mark.parametrize("path", PATHS)
    def test_methods(self, welcome: Welcome, method: str, path: str) -> None:
        """GET and HEAD only."""
        response = welcome.answer(method, path)
        assert response.status == 405
        assert response.headers.get("allow") == "GET, HEAD"

    @given(method=st.sampled_from(["GET", "HEAD", "POST"]), path=st.text(), accept=st.text())
    def test_anything(self, welcome: Welcome, method: str, path: str, accept: str) -> None:
        """Any path has an answer that is safe to look at and does not repeat it; what is not here is told."""
        response = welcome.answer(method, path, accept)
        assert response.outcome == "LOCAL"
        assert response.status == (404 if path not in PATHS else 200 if method != "POST" else 405)
        assert response.headers.get("x-content-type-options") == "nosniff"
        assert (response.headers.get("content-security-policy") or "").startswith("default-src 'none'")
        assert response.headers.get("cache-control") == "no-store"
        if response.status == 404 and method == "GET":
            assert content(response) == b"There is /, /ca.crt, /ca.der, /setup.sh, /healthz.\n"

    @pytest.mark.parametrize("path", ["/ca.key", "//", "/setup.sh/", "/SETUP.SH", "/%2fca.crt", "/../ca.crt", "ca.crt"])
    def test_near_misses(self, welcome: Welcome, path: str) -> None:
        """Paths are these, letter by letter."""
        assert welcome.answer("GET", path).status == 404


def test_registries(facts: Facts) -> None:
    """Every registry of the configuration is in the script, by names that a node's files can hold."""
    own = Registry("r.example:5000", "r.example:5000", aliases=("10.1.2.3", "s.example"))
    welcome = Welcome(replace(facts, known=Known((own, *TABLE))), ready=lambda: True)
    lines = welcome.script.content.decode().split("\n")
    assert "r.example s.example" in lines
    assert "s.example" in lines  # podman's mirrors
    assert "10.1.2.3" not in lines
