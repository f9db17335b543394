"""`WWW-Authenticate` challenges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.wire.challenge import Bearer, in_clear, parse_bearer

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull"'


@pytest.mark.parametrize(
    ("header", "bearer"),
    [
        pytest.param(
            HUB,
            Bearer("https://auth.docker.io/token", "registry.docker.io", "repository:library/a:pull"),
            id="Docker Hub",
        ),
        pytest.param('bearer   realm="r"', Bearer("r", "", ""), id="realm alone"),
        pytest.param("BEARER REALM=r , Service=s", Bearer("r", "s", ""), id="unquoted, any case"),
        pytest.param('Bearer realm="r",scope="a:b:pull,push"', Bearer("r", "", "a:b:pull,push"), id="comma in quotes"),
        pytest.param(r'Bearer realm="a\"b\\c"', Bearer(r"a\"b\c".replace(r"\"", '"'), "", ""), id="escapes"),
        pytest.param('Bearer realm="r",error="invalid_token"', Bearer("r", "", ""), id="more than is known"),
        pytest.param(None, None, id="no header"),
        pytest.param("", None, id="empty"),
        pytest.param("Bearer", None, id="no parameters"),
        pytest.param('Bearer service="s"', None, id="no realm"),
        pytest.param('Bearer realm=""', None, id="empty realm"),
        pytest.param('Bearer realm="r', None, id="no end"),
        pytest.param('Basic realm="r"', None, id="another scheme"),
    ],
)
def test_parse(header: str | None, bearer: Bearer | None) -> None:
    """A Bearer challenge that names a realm is understood; anything else is none."""
    assert parse_bearer(header) == bearer


texts = st.text(st.characters(min_codepoint=32, max_codepoint=126))


@given(texts.filter(bool), texts, texts)
def test_quoted(realm: str, service: str, scope: str) -> None:
    """Every printable value comes through quoting."""
    quoted = [value.replace("\\", r"\\").replace('"', r"\"") for value in (realm, service, scope)]
    header = 'Bearer realm="{}", service="{}", scope="{}"'.format(*quoted)
    assert parse_bearer(header) == Bearer(realm, service, scope)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param(
            'Bearer realm="https://quay.io/v2/auth",service="quay.io"',
            'Bearer realm="http://quay.io/v2/auth",service="quay.io"',
            id="own host",
        ),
        pytest.param(
            'Bearer realm="https://cdn.quay.io/v2/auth"', 'Bearer realm="http://cdn.quay.io/v2/auth"', id="alias"
        ),
        pytest.param(HUB, HUB, id="another host"),
        pytest.param('Bearer realm="https://quay.io:8443/a"', 'Bearer realm="https://quay.io:8443/a"', id="port"),
        pytest.param('Bearer realm="http://quay.io/a"', 'Bearer realm="http://quay.io/a"', id="clear already"),
        pytest.param('Bearer realm="https://[/a"', 'Bearer realm="https://[/a"', id="no URL"),
        pytest.param('Basic realm="https://quay.io/"', 'Basic realm="https://quay.io/"', id="Basic"),
        pytest.param("nonsense", "nonsense", id="nonsense"),
    ],
)
def test_in_clear(header: str, expected: str) -> None:
    """Only a realm on the registry's own host, by https, becomes http; everything else is passed on as it came."""
    assert in_clear(header, ("quay.io", "cdn.quay.io")) == expected


@given(st.one_of(st.text(), texts.map("Bearer realm={}".format), texts.map('Bearer realm="https://{}"'.format)))
def test_any_header(header: str) -> None:
    """Whatever a registry sends, nothing breaks, and what is no challenge is left alone."""
    if parse_bearer(header) is None:
        assert in_clear(header, ("quay.io",)) == header
    else:
        assert in_clear(header, ()) == header
