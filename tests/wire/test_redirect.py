"""Where a redirect leads, and what may go there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.errors import UpstreamError
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.redirect import Origin, carry, next_hop, redact_safely

HERE = "https://quay.io/v2/team/app/blobs/sha256:0?ns=x"
SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        pytest.param("https://s3.example/b?sig=1", "https://s3.example/b?sig=1", id="absolute"),
        pytest.param("/other?a=b", "https://quay.io/other?a=b", id="path"),
        pytest.param("sha256:1", "sha256:1", id="looks like a scheme"),
        pytest.param("x/y", "https://quay.io/v2/team/app/blobs/x/y", id="relative"),
        pytest.param("../tags", "https://quay.io/v2/team/app/tags", id="up"),
        pytest.param("//cdn.example/b", "https://cdn.example/b", id="same scheme"),
        pytest.param("?x=1", "https://quay.io/v2/team/app/blobs/sha256:0?x=1", id="query alone"),
    ],
)
def test_next_hop(location: str, target: str) -> None:
    """Absolute and relative locations lead where RFC 3986 says; another scheme than http(s) leads nowhere."""
    if target.startswith("https:"):
        assert next_hop(HERE, location, allow_http=False) == target
    else:
        with pytest.raises(UpstreamError, match="is not an http or https URL"):
            next_hop(HERE, location, allow_http=False)


@pytest.mark.parametrize(
    "location",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param("https://a.example/b c", id="space"),
        pytest.param("https://a.example/\r\nX: y", id="line break"),
        pytest.param("\thttps://a.example/", id="tab"),
        pytest.param("https://[::1/", id="open bracket"),
        pytest.param("https://a.example:99999/", id="port out of range"),
        pytest.param("https://a.example:x/", id="port not a number"),
        pytest.param("http:///path", id="no host"),
        pytest.param("https://qu%61y.io/", id="encoded host"),
        pytest.param("https://-quay.io/", id="host with a minus in front"),
        pytest.param("https://2852039166/", id="address as a number"),
        pytest.param("https://0xa9.254.43518/", id="address in odd parts"),
        pytest.param("https://127.1/", id="short address"),
        pytest.param("https://010.0.0.1/", id="octal address"),
        pytest.param("https://127.0.0.1./", id="address with a dot behind"),
        pytest.param("https://quay.io.0x/", id="last label a number"),
        pytest.param("https://quay.io:0/", id="port 0"),
        pytest.param("https://quay.io\\@evil.example\\/", id="backslash"),
        pytest.param("https://quäy.io/", id="host of another script"),
        pytest.param("https://[fe80::1%25eth0]/", id="zone"),
        pytest.param("file:///etc/passwd", id="file"),
        pytest.param("gopher://a.example/", id="gopher"),
        pytest.param("javascript:alert(1)", id="script"),
        pytest.param("http://a.example/", id="http"),
    ],
)
def test_refused(location: str | None) -> None:
    """What is no https URL is not followed; the error says so and names the address that sent it or it led to."""
    with pytest.raises(UpstreamError) as caught:
        next_hop(HERE, location, allow_http=False)
    assert caught.value.status == 502


def test_http() -> None:
    """From https to http only with leave; from http to http always, and to https as well."""
    with pytest.raises(UpstreamError, match=r"upstream\.allow_http"):
        next_hop(HERE, "http://a.example/", allow_http=False)
    assert next_hop(HERE, "http://a.example/", allow_http=True) == "http://a.example/"
    assert next_hop("http://quay.io/x", "/y", allow_http=False) == "http://quay.io/y"
    assert next_hop("http://quay.io/x", "https://quay.io/y", allow_http=False) == "https://quay.io/y"


@given(st.one_of(st.text(), st.text("htps:/[]@?#%.a1-ü\\ \n")))
def test_any_location(location: str) -> None:
    """Whatever a registry sends, it is an https URL with a host, or an UpstreamError."""
    try:
        target = next_hop(HERE, location, allow_http=False)
    except UpstreamError:
        return
    assert Origin.of(target).scheme == "https"


@pytest.mark.parametrize(
    "location",
    [
        f"http://u:{SECRET}@a.example/?sig={SECRET}",
        f"ftp://a.example/?sig={SECRET}",
        f"https://a.example:99999/?sig={SECRET}",
        f"https://[{SECRET}",
        f"https://a.example:{SECRET}@[/?sig=1",
    ],
)
def test_errors_hold_no_secret(location: str) -> None:
    """A location that is refused may be a signed URL all the same."""
    with pytest.raises(UpstreamError) as caught:
        next_hop(f"{HERE}&sig={SECRET}", location, allow_http=False)
    assert SECRET not in caught.value.message


def test_redact_safely() -> None:
    """An address is redacted; what is none is not shown."""
    assert redact_safely(f"https://u:{SECRET}@h.example/?sig={SECRET}") == "https://h.example/?sig=***"
    assert SECRET not in redact_safely(f"https://[{SECRET}")


@pytest.mark.parametrize(
    ("url", "origin", "authority", "text"),
    [
        ("https://h.example/x", Origin("https", "h.example", 443), "h.example", "https://h.example"),
        ("HTTPS://H.Example:443", Origin("https", "h.example", 443), "h.example", "https://h.example"),
        ("http://h.example", Origin("http", "h.example", 80), "h.example", "http://h.example"),
        ("http://h.example:443/", Origin("http", "h.example", 443), "h.example:443", "http://h.example:443"),
        ("https://[fd00::1]:5000/", Origin("https", "fd00::1", 5000), "[fd00::1]:5000", "https://[fd00::1]:5000"),
        ("https://[FD00::1]/", Origin("https", "fd00::1", 443), "[fd00::1]", "https://[fd00::1]"),
        ("https://127.0.0.1/", Origin("https", "127.0.0.1", 443), "127.0.0.1", "https://127.0.0.1"),
        ("https://1.0x7.q/", Origin("https", "1.0x7.q", 443), "1.0x7.q", "https://1.0x7.q"),
        ("https://_a-b.q./", Origin("https", "_a-b.q.", 443), "_a-b.q.", "https://_a-b.q."),
    ],
)
def test_origin(url: str, origin: Origin, authority: str, text: str) -> None:
    """Scheme, host and port, however they are spelt; the port is written only where it has to be."""
    assert Origin.of(url) == origin
    assert (origin.authority, str(origin)) == (authority, text)


HEADERS = Headers([("Accept", "x"), ("Authorization", SECRET), ("COOKIE", SECRET), ("Range", "bytes=0-")])


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("https://cdn.quay.io/v2/", id="host"),
        pytest.param("http://quay.io/v2/", id="scheme"),
        pytest.param("https://quay.io:8443/v2/", id="port"),
        pytest.param("https://quay.io@evil.example/", id="user information"),
    ],
)
def test_credentials_stay(target: str) -> None:
    """Another scheme, host or port gets no credential, and all the rest."""
    assert list(carry(HEADERS, HERE, target)) == [("Accept", "x"), ("Range", "bytes=0-")]


@pytest.mark.parametrize("target", ["https://quay.io/x", "https://QUAY.io:443/x"])
def test_credentials_go_on(target: str) -> None:
    """The same origin gets the same headers."""
    assert list(carry(HEADERS, HERE, target)) == list(HEADERS)
