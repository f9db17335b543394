"""Every parser of the package, given anything: its own error and no other, and time that grows no faster than the text.

What a parser means is tested beside its module; here it is only what it must never do. The last test looks for
functions that parse and are missing in the table.
"""

import ast
import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mitm_cache import config, parsing
from mitm_cache.ca import certificates
from mitm_cache.ca.constraints import Constraints
from mitm_cache.cache.entry import Link
from mitm_cache.doctor.node import read_daemon_json, read_hosts
from mitm_cache.errors import ClientError, ConfigError, MitmCacheError, UpstreamError
from mitm_cache.exchange import stock
from mitm_cache.filling.listed import parse_list
from mitm_cache.filling.trees import parse_platforms
from mitm_cache.filling.versions import Constraint
from mitm_cache.local import manifests
from mitm_cache.node import docker, hosting, lines, rancher, tomls, trust
from mitm_cache.node.files import decode, encode
from mitm_cache.node.model import Cache
from mitm_cache.node.state import MANIFEST, State, folder_of
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import Accept, is_schema_1, media_type_of
from mitm_cache.oci.operation import classify
from mitm_cache.oci.reference import Repository, Tag, parse_reference
from mitm_cache.proxy import mirror
from mitm_cache.proxy.head import refuse_head
from mitm_cache.proxy.identity import Arrival, identify, split_host
from mitm_cache.proxy.peek import Connect, read_connect, read_server_name
from mitm_cache.pull_through.listing import Page, Theirs
from mitm_cache.registries import DOCKER_HUB, TABLE, Known
from mitm_cache.upstream import tokens
from mitm_cache.upstream.credentials import parse_secret
from mitm_cache.upstream.credentials_helper import Helper
from mitm_cache.upstream.credentials_sources import DockerConfig
from mitm_cache.upstream.curl import Answer
from mitm_cache.users import table as users
from mitm_cache.users import tokens as own_tokens
from mitm_cache.welcome.pages import accepts_html
from mitm_cache.wire import ranges, redirect
from mitm_cache.wire.basic import parse_basic
from mitm_cache.wire.challenge import in_clear, offers_basic, parse_bearer
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.proxies import Bypass, Proxy
from mitm_cache.wire.redact import redact
from mitm_cache.wire.redirect import Origin

KNOWN = Known(TABLE)
REALM = Origin("https", "quay.io", 443)
TRICKY = "[]{}()<>\"'\\/.,:;=&?#%@*+-_~$!|^` \t\r\n\0\x0b\x1b\x7f0189afzAZé٣１\u2028\ud800😀"  # noqa: RUF001 - digits of other scripts
SECONDS = 1.0
"""Processor time that a parser may take for LONG characters. What is quadratic takes many times that."""
LONG = 60_000

type Parse = Callable[[str], object]


def _answer(text: str, **headers: str) -> Answer:
    fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Answer(200, Headers(fields), REALM, text.encode(errors="surrogateescape") if _plain(text) else b"\xff")


def _plain(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _latin(text: str) -> str:
    """As header fields are: every byte a character."""
    return _bytes(text).decode("latin-1")


def _stream(read: Callable[[asyncio.StreamReader], Any]) -> Parse:
    """A parser of what a connection begins with, given all of it and the end."""

    def parse(text: str) -> object:
        async def run() -> object:
            reader = asyncio.StreamReader()
            reader.feed_data(_bytes(text))
            reader.feed_eof()
            return await read(reader)

        return asyncio.run(run())

    return parse


def _file(parse: Callable[[Path], object]) -> Parse:
    """A parser of a file, given one with this text."""

    def read(text: str) -> object:
        path = _folder() / "file"
        path.write_bytes(_bytes(text))
        path.chmod(0o600)
        return parse(path)

    return read


def _folder() -> Path:
    assert _Folder.path is not None
    return _Folder.path


class _Folder:
    """A folder for those who read files; hypothesis and fixtures of one function each do not go together."""

    path: Path | None = None


@pytest.fixture(autouse=True, scope="module")
def _folder_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    _Folder.path = tmp_path_factory.mktemp("parsers")


def _state(text: str) -> object:
    folder = folder_of(_folder())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_bytes(_bytes(text))
    return State(_folder())


def _identify(text: str) -> object:
    return [
        identify(Arrival(listener, 443, sni, target, "10.0.0.1"), [text], "/v2/", KNOWN, ["docker.proxy"])
        for listener, sni, target in (("clear", None, ""), ("mirror", None, ""))
    ]


def _connect(text: str) -> object:
    return _stream(read_connect)(f"CONNECT {text}")


def _lookup(text: str) -> object:
    return _file(lambda path: DockerConfig("key", path, DOCKER_HUB, {})._look_up())(text)


# Per name: what parses, and what it may raise.
PARSERS: dict[str, tuple[Parse, type[Exception] | tuple[type[Exception], ...]]] = {
    # wire
    "Range": (lambda text: ranges.resolve(text, 1000), ranges.Unsatisfiable),
    "Range without its unit": (lambda text: ranges.resolve(f"bytes={text}", 1000), ranges.Unsatisfiable),
    "Content-Range": (ranges.parse_content_range, ()),
    "WWW-Authenticate": (parse_bearer, ()),
    "WWW-Authenticate: Bearer": (lambda text: parse_bearer(f"Bearer {text}"), ()),
    "WWW-Authenticate, Basic": (lambda text: offers_basic([text]), ()),
    "WWW-Authenticate in clear": (lambda text: in_clear(f'Bearer realm="{text}"', ["quay.io"]), ()),
    "Authorization": (lambda text: parse_basic([f"Basic {text}"]), ()),
    "Location": (lambda text: redirect.next_hop("https://quay.io/v2/", text, allow_http=False), UpstreamError),
    "Location for a client": (lambda text: redirect.localize(text, "https://q", "https://quay.io", ["quay.io"]), ()),
    "origin": (Origin.of, UpstreamError),
    "origin behind its scheme": (lambda text: Origin.of(f"https://{text}"), UpstreamError),
    "redaction": (redirect.redact_safely, ()),
    "redaction of a URL": (lambda text: redact(f"https://quay.io/?{text}"), ValueError),
    "proxy": (lambda text: Proxy.of(text, key="key"), ValueError),
    "proxy behind its scheme": (lambda text: Proxy.of(f"http://{text}", key="key"), ValueError),
    "NO_PROXY": (lambda text: Bypass.of((text,)).matches("quay.io", 443), ValueError),
    # oci
    "digest": (Digest.parse, ClientError),
    "repository": (Repository.parse, ClientError),
    "tag": (Tag.parse, ClientError),
    "reference": (parse_reference, ClientError),
    "path": (classify, ClientError),
    "path below the API": (lambda text: classify(f"/v2/{text}"), ClientError),
    "Accept": (lambda text: (Accept(_latin(text)).key, Accept(_latin(text)).takes("a/b")), ()),
    "Accept of a browser": (accepts_html, ()),
    "Content-Type": (lambda text: (media_type_of(text), is_schema_1(text)), ()),
    # proxy
    "Host": (split_host, ClientError),
    "Host, to a registry": (_identify, ClientError),
    "mirror's target": (lambda text: mirror.resolve(f"/v2/{text}", None, KNOWN), ClientError),
    "ns": (lambda text: mirror.resolve(f"/v2/a/manifests/1?ns={text}", None, KNOWN), ClientError),
    "request's head": (lambda text: refuse_head(_bytes(text)), ()),
    "ClientHello": (lambda text: _stream(read_server_name)(f"\x16\x03\x01{text}"), ()),
    "connection's beginning": (_stream(read_connect), ClientError),
    "CONNECT": (_connect, ClientError),
    # upstream
    "token": (lambda text: tokens._parse_token(_answer(text)), ()),
    "realm": (lambda text: tokens.belongs(text, DOCKER_HUB, REALM), ()),
    "scope": (tokens._only_pull, ()),
    "secret": (lambda text: parse_secret("key", text), ConfigError),
    "helper": (lambda text: Helper("key", "x", "quay.io", {})._parse(_bytes(text)), ConfigError),
    "docker's credentials": (_lookup, ConfigError),
    # lists
    "page": (lambda text: Page.of(f"/v2/_catalog?{text}"), ClientError),
    "page's number": (lambda text: Page.of(f"/v2/_catalog?n={text}"), ClientError),
    "upstream's page": (lambda text: Theirs.of(_answer(text), "tags"), ()),
    "upstream's Link": (lambda text: Theirs.of(_answer('{"tags": []}', link=text), "tags"), ()),
    # on disk
    "link": (Link.from_json, MitmCacheError),
    # ca
    "CA's names": (lambda text: Constraints.parse([text]), ConfigError),
    "key": (lambda text: certificates.parse_key("file", _bytes(text)), ConfigError),
    "certificates": (lambda text: certificates.parse_certificates("file", _bytes(text)), ConfigError),
    "certificate in PEM": (
        lambda text: certificates.parse_certificates(
            "file", _bytes(f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
        ),
        ConfigError,
    ),
    # configuration
    "configuration": (_file(lambda path: config.load(file=path, environ={})), ConfigError),
    **{
        f"configuration's {name}": ((lambda text, parse=parse: parse("key", text)), ConfigError)  # type: ignore[misc]
        for name, parse in (
            ("paths", parsing.path),
            ("booleans", parsing.boolean),
            ("hosts", parsing.hosts),
            ("names", parsing.names),
            ("addresses", parsing.addresses),
            ("servers", parsing.servers),
            ("networks", parsing.networks),
            ("ports", parsing.ports),
            ("endpoints", parsing.endpoints),
            ("limits", parsing.limit),
            ("URLs", parsing.url),
            ("proxies", parsing.proxy),
            ("bypass", parsing.bypass),
            ("rights", parsing.rights),
            ("credentials", parsing.credentials),
            ("prefix", parsing.prefix),
            ("log format", parsing.log_format),
        )
    },
    # pushes
    "a manifest": (lambda text: manifests.read(_bytes(text), "", Tag("1")), ClientError),
    "a manifest's type": (lambda text: manifests.read(b"{}", text, Tag("1")), ClientError),
    # nodes
    "--cache": (Cache.parse, ConfigError),
    "--local": (hosting.parse_local, ConfigError),
    "--fingerprint": (trust.parse_fingerprint, ConfigError),
    "ca.crt": (lambda text: trust.parse_certificate("file", text), ConfigError),
    "ca.crt in PEM": (
        lambda text: trust.parse_certificate("f", f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"),
        ConfigError,
    ),
    "daemon.json": (docker.parse, ConfigError),
    "hosts.toml": (lambda text: tomls.read_toml("file", text), ConfigError),
    "edit of a hosts.toml": (lambda text: tomls.set_text("file", text, ("a",), "b", "c"), ConfigError),
    "registries.yaml": (lambda text: rancher.read_yaml("file", text), ConfigError),
    "setup's manifest": (_state, ConfigError),
    "lines": (lambda text: lines.take_out("a\n", "a\nb\n", text), ()),
    "users": (lambda text: users.parse(_bytes(text), where="file"), ConfigError),
    "token of our own": (lambda text: own_tokens.parse_bearer([f"Bearer mitm-cache.{_latin(text)}"]), ()),
    "Authorization with a token": (lambda text: own_tokens.parse_bearer([_latin(text)]), ()),
    # what is filled and carried
    "versions": (Constraint.parse, ConfigError),
    "images.yaml": (parse_list, ConfigError),
    "platforms": (parse_platforms, ConfigError),
    "document of an archive": (lambda text: stock.parse(_bytes(text), "document"), ClientError),
    # doctor
    "/etc/hosts": (_file(read_hosts), ()),
    "daemon.json, looked at": (_file(read_daemon_json), ()),
}
SLOW = {"registries.yaml", "images.yaml"}
"""ruamel.yaml takes seconds for a thousand brackets; it reads nothing but a node's own files."""
QUADRATIC = {
    "lines",  # difflib, of a file of the node's own
    "registries.yaml",  # ruamel.yaml, the same
    "images.yaml",  # the same
    "edit of a hosts.toml",
    "hosts.toml",
    "configuration",
    "ClientHello",  # 64 KiB at most, and each read is parsed once
}
"""Parsers of what an operator has written, or of what has a limit far below LONG; they are not timed."""

by_name = pytest.mark.parametrize("name", PARSERS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(TRICKY, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["token", "access_token", "expires_in", "tags", "digest", "size", "origin", "media_type", "Username", "Secret",
         "auths", "credHelpers", "https://index.docker.io/v1/", "auth", "version", "files", "backup",
         "x"]), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
TEXTS = st.text(max_size=60) | st.text(TRICKY, max_size=60) | JSON.map(json.dumps)


def _survives(name: str, text: str) -> None:
    parse, errors = PARSERS[name]
    if name in SLOW:
        text = text[:300]
    try:
        parse(text)
    except errors:
        pass


@by_name
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS)
@example(text="")
@example(text="[" * 100_000)
@example(text='{"a":' * 50_000)
@example(
    text='{"version": 1, "files": {"x": {"targets": [], "after": "", "backup": 1e999, "folders": [], "steps": []}}}'
)
@example(text='{"expires_in": 1e999, "size": 1e999, "token": "x"}')
@example(text="[::1]]:443")
@example(text="9" * 5000)
@example(text="https://[")
def test_nothing_but_its_own_error(name: str, text: str) -> None:
    """Whatever the text is: a value, or the error that its module names."""
    _survives(name, text)


@pytest.mark.parametrize("name", [name for name in PARSERS if name not in QUADRATIC])
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(start=st.text(TRICKY, max_size=3), unit=st.text(TRICKY, min_size=1, max_size=3), end=st.text(TRICKY, max_size=3))
@example(start="", unit=" ", end="x")
@example(start='realm="', unit="\\", end="")
@example(start="", unit="a=,", end='"')
@example(start="a", unit="-", end="!")
@example(start="a", unit="_a", end="!")
@example(start="a", unit="/a", end="!")
@example(start="0.", unit="0.", end="x")
@example(start="<", unit=">;", end="rel=nex")
@example(start="", unit="%25", end="")
def test_time(name: str, start: str, unit: str, end: str) -> None:
    """The same again and again, as exponential and quadratic matching like it, takes no noticeable time."""
    began = time.thread_time()
    _survives(name, start + unit * (LONG // len(unit)) + end)
    took = time.thread_time() - began
    assert took < SECONDS, f"{took:.1f} s"


@given(st.binary())
def test_files_of_a_node_round_trip(content: bytes) -> None:
    """Bytes come back as they were, whatever they are."""
    assert encode(decode(content)) == content


@given(st.sampled_from(["a.example", "10.0.0.1", "::1", "x-y"]), st.none() | st.integers(1, 65535))
def test_a_caches_address_round_trips(host: str, port: int | None) -> None:
    """As it is written, it is read."""
    cache = Cache(host, port)
    written = cache.at(5000) if port else host
    assert Cache.parse(written) == cache


@given(st.sampled_from(["quay.io", "a.b", "1.2.3.4", "2001:db8::1"]), st.integers(1, 65535), st.binary(max_size=20))
def test_connect_round_trips(host: str, port: int, rest: bytes) -> None:
    """Host, port and what came behind the head."""

    async def run() -> object:
        reader = asyncio.StreamReader()
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        reader.feed_data(f"CONNECT {authority} HTTP/1.1\r\nHost: x\r\n\r\n".encode() + rest)
        reader.feed_eof()
        return await read_connect(reader)

    found = asyncio.run(run())
    assert isinstance(found, Connect)
    assert (found.host, found.port, found.rest) == (host, port, rest)


@given(st.integers(0, 10**17), st.integers(1, 10**17), st.integers(0, 10**17))
def test_content_range_round_trips(start: int, length: int, more: int) -> None:
    """A span's own words are read as that span."""
    span = ranges.Span(start, start + length, start + length + more)
    assert ranges.parse_content_range(span.content_range) == span


@given(st.sampled_from(["http", "https"]), st.sampled_from(["a.b", "10.0.0.1", "::1"]), st.integers(1, 65535))
def test_origins_round_trip(scheme: str, host: str, port: int) -> None:
    """An origin is written as a URL that is the same origin."""
    origin = Origin(scheme, host, port)
    assert Origin.of(str(origin)) == origin


def functions_that_parse(root: Path) -> set[str]:
    """Public functions and class methods whose names say that they parse a text, with their modules."""
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith(("parse", "classify")):
                found.add(f"{path.relative_to(root).with_suffix('')}:{node.name}".replace("/", "."))
    return found


KNOWN_PARSERS = {
    "ca.certificates:parse_certificates", "ca.certificates:parse_key", "ca.constraints:parse", "node.docker:parse",
    "node.hosting:parse_local",
    "node.model:parse", "node.trust:parse_certificate", "node.trust:parse_fingerprint", "oci.digest:parse",
    "oci.operation:classify", "oci.reference:parse", "oci.reference:parse_reference",
    "upstream.credentials:parse_secret",
    "exchange.stock:parse", "filling.listed:parse_list", "filling.trees:parse_platforms", "filling.versions:parse",
    "users.table:parse", "users.tokens:parse_bearer", "users.tokens:parse_token", "wire.basic:parse_basic",
    "wire.challenge:parse_bearer", "wire.ranges:parse_content_range",
}  # fmt: skip
ELSEWHERE = {
    "cli.images:parse": "tests/oci/test_image.py",
    "oci.image:parse": "tests/oci/test_image.py",
    "workers.channel:parse": "tests/test_workers.py",  # between processes of our own
}
"""Parsers with property tests in their module's own tests."""


def test_no_parser_is_missing() -> None:
    """A new parser is put into the table, or said to be tested elsewhere."""
    root = Path(__file__).parent.parent / "mitm_cache"
    assert functions_that_parse(root) - KNOWN_PARSERS - set(ELSEWHERE) == set()
