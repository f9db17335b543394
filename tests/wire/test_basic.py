"""The Basic scheme."""

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.wire.basic import Basic, parse_basic


def encoded(pair: bytes) -> str:
    return b64encode(pair).decode()


@pytest.mark.parametrize(
    ("values", "login"),
    [
        pytest.param([f"Basic {encoded(b'ann:secret')}"], Basic("ann", b"secret"), id="usual"),
        pytest.param([f"bASIC   {encoded(b'ann:secret')} "], Basic("ann", b"secret"), id="any case, spaces"),
        pytest.param([f"Basic {encoded(b'ann:a:b:')}"], Basic("ann", b"a:b:"), id="colons belong to the password"),
        pytest.param([f"Basic {encoded(b':')}"], Basic("", b""), id="both empty"),
        pytest.param(
            [f"Basic {encoded('jürgen:pässwort'.encode())}"], Basic("jürgen", "pässwort".encode()), id="UTF-8"
        ),
        pytest.param([f"Basic {encoded(b'ann:' + bytes([255, 0]))}"], Basic("ann", b"\xff\0"), id="any password"),
        pytest.param([], None, id="no header"),
        pytest.param([f"Basic {encoded(b'a:b')}"] * 2, None, id="twice"),
        pytest.param([f"Basic {encoded(b'a:b')}, Basic {encoded(b'a:b')}"], None, id="twice in one"),
        pytest.param([f"Bearer {encoded(b'a:b')}"], None, id="another scheme"),
        pytest.param(["Basic"], None, id="scheme alone"),
        pytest.param(["Basic "], None, id="nothing"),
        pytest.param([f"Basic {encoded(b'ann')}"], None, id="no colon"),
        pytest.param([f"Basic {encoded(bytes([255]) + b':x')}"], None, id="a name that is no text"),
        pytest.param(["Basic YTpi="], None, id="padding"),
        pytest.param(["Basic Y:T"], None, id="no base64"),
        pytest.param(["Basic YTp\r\nX"], None, id="control characters"),
    ],
)
def test_parse(values: list[str], login: Basic | None) -> None:
    """One name and password, or none."""
    assert parse_basic(values) == login


@given(st.text().filter(lambda name: ":" not in name and name.isprintable()), st.binary(max_size=100))
def test_round(name: str, password: bytes) -> None:
    """Whatever a client encodes is what is understood, and the password is in no repr."""
    login = parse_basic([f"Basic {encoded(name.encode() + b':' + password)}"])
    assert login == Basic(name, password)
    assert repr(login) == f"Basic(name={name!r})"


@given(st.text())
def test_anything(value: str) -> None:
    """Whatever a client sends is understood or is not: nothing is raised."""
    parse_basic([value])
    parse_basic([f"Basic {value}"])
