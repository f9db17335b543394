"""Which hosts go without a proxy."""

import pytest

from mitm_cache.wire.proxies import Bypass


@pytest.mark.parametrize(
    ("entry", "host", "expected"),
    [
        ("*", "any.example", True),
        ("q.example", "q.example", True),
        ("Q.example", "q.example.", True),
        ("q.example", "a.q.example", True),
        ("q.example", "aq.example", False),
        (".q.example", "q.example", False),
        (".q.example", "a.q.example", True),
        ("*.q.example", "a.b.q.example", True),
        ("*.q.example", "q.example", False),
        ("localhost", "localhost", True),
        ("q.example:443", "q.example", True),
        ("q.example:5000", "q.example", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.1/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "ten.example", False),
        ("10.0.0.5", "10.0.0.5", True),
        ("10.0.0.5:443", "10.0.0.5", True),
        ("10.0.0.5:80", "10.0.0.5", False),
        ("::1", "::1", True),
        ("[::1]", "::1", True),
        ("[::1]:443", "::1", True),
        ("fd00::/8", "fd00::5", True),
        ("fd00::/8", "10.0.0.5", False),
    ],
)
def test_bypass(entry: str, host: str, expected: bool) -> None:
    """A host goes direct by its name, a name above it, its network, or everything; never by what it resolves to."""
    assert Bypass.of(("other.example", entry)).matches(host, 443) is expected


@pytest.mark.parametrize("entry", ["<local>", "192.168.*", "a b", "q.example:x", "http://q.example", "", "."])
def test_no_entry(entry: str) -> None:
    """What would never match is refused rather than ignored."""
    with pytest.raises(ValueError):
        Bypass.of((entry,))


def test_nothing() -> None:
    """Without entries no host goes direct."""
    assert not Bypass().matches("q.example", 443)
