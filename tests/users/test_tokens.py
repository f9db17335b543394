"""Tokens of the cache's own: what one is, who knows it again, and the key."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.errors import ConfigError, TokenError
from mitm_cache.users import OwnTokens, Users
from mitm_cache.users.key import SIZE, read_or_make
from mitm_cache.users.tokens import MAX_SIZE, SECONDS, SLACK_SECONDS, Token, parse_bearer, parse_token

SECRET = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
OTHER = bcrypt.hashpw(b"other", bcrypt.gensalt(4)).decode()
ISSUER = "0123456789abcdef"
KEY = bytes(range(SIZE))


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    opened = open_users(tmp_path, f"ann:{SECRET}\nbob:{SECRET}\n")
    yield opened
    opened.close()


def open_users(tmp_path: Path, text: str) -> Users:
    path = tmp_path / "users"
    path.touch(mode=0o600)
    path.write_text(text)
    return Users.open(path)


# --- what one is -------------------------------------------------------------------------------------------------

tokens = st.builds(
    Token,
    issuer=st.text("0123456789abcdef", min_size=1, max_size=64),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=255),
    expires=st.integers(1, 10**12 - 1),
    mac=st.binary(min_size=32, max_size=32),
)


@given(tokens)
def test_parse_is_the_inverse_of_writing(token: Token) -> None:
    """What is written is read, alone and as a header has it, and is never too long."""
    assert parse_token(str(token)) == token
    assert parse_bearer([f"Bearer {token}"]) == parse_bearer([f"bEARER   {token} "]) == token
    assert len(str(token)) <= MAX_SIZE


@given(tokens, st.data())
def test_there_is_one_way_to_write_each(token: Token, data: st.DataObject) -> None:
    """A text with one character changed, more or less is no token, or another one."""
    text = str(token)
    at = data.draw(st.integers(0, len(text)))
    changed = text[:at] + data.draw(st.text(max_size=2)) + text[at + data.draw(st.integers(0, 1)) :]
    assert changed == text or parse_token(changed) != token


MAC = "A" * 43


@pytest.mark.parametrize(
    "text",
    ["", "mitm-cache", f"mitm-cache.{ISSUER}.1..", f"mitm-cache.{ISSUER}.1.{MAC}", f"mitm-cache..1..{MAC}",
     f"mitm-cache.{ISSUER}.-1..{MAC}", f"mitm-cache.{ISSUER}.01..{MAC}", f"mitm-cache.{ISSUER}.1..{MAC}=",
     f"mitm-cache.{ISSUER}.1..{MAC[:-1]}B", f"mitm-cache.{ISSUER}.1._w.{MAC}", f"mitm-cache.{ISSUER}.1.A.{MAC}",
     f"mitm-cache.{ISSUER}.1.{'A' * MAX_SIZE}.{MAC}", f"mitm-cache.{ISSUER}.{'9' * 13}..{MAC}",
     f"mitm-cache.{ISSUER}.1..{MAC}\n", f"mitm-cache.{ISSUER}.\u0661..{MAC}", f"MITM-CACHE.{ISSUER}.1..{MAC}"],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    """Parts that are missing, too long, or written in another way than the one."""
    assert parse_token(text) is None
    assert parse_bearer([f"Bearer {text}"]) is None


def test_values_that_are_none() -> None:
    """A header that is there twice, is of another scheme, or has more in it, is no token."""
    good = f"Bearer mitm-cache.{ISSUER}.1..{MAC}"
    assert parse_bearer([good]) is not None
    for values in (
        [],
        [good, good],
        [f"Basic {good[7:]}"],
        [f"{good} x"],
        [good.replace(" ", "")],
        [f"{good}, {good}"],
    ):
        assert parse_bearer(values) is None


def test_nothing_shows_it(users: Users) -> None:
    """What prints a token as a value does not print what makes it one."""
    token = OwnTokens(KEY, users, issuer=ISSUER).issue("ann")
    assert str(token).rpartition(".")[2] not in repr(token)
    assert str(token.mac) not in repr(token)


# --- who knows it again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ann", ""], ids=["a user", "a stranger"])
def test_the_holder(users: Users, name: str) -> None:
    """Every process with the key knows whose it is, for an hour."""
    clock = Clock()
    token = OwnTokens(KEY, users, issuer=ISSUER, now=clock).issue(name)
    again = OwnTokens(KEY, users, issuer=ISSUER, now=clock)
    assert token.expires == clock.now + SECONDS
    for passed in (0.0, SECONDS - 1.0):
        clock.now = 1_700_000_000.0 + passed
        assert again.holder(token) == name
    clock.now += 1
    assert again.holder(token) is None


def test_what_is_not_its_own(users: Users) -> None:
    """Another name, time, key, cache or MAC makes it nobody's."""
    clock = Clock()
    own = OwnTokens(KEY, users, issuer=ISSUER, now=clock)
    token = own.issue("ann")
    foreign = (
        Token(ISSUER, "bob", token.expires, token.mac),
        Token(ISSUER, "", token.expires, token.mac),
        Token(ISSUER, "eve", token.expires, token.mac),
        Token(ISSUER, "ann", token.expires + 1, token.mac),
        Token("ff", "ann", token.expires, token.mac),
        Token(ISSUER, "ann", token.expires, bytes(32)),
        OwnTokens(bytes(SIZE), users, issuer=ISSUER, now=clock).issue("ann"),
        OwnTokens(KEY, users, issuer="ff", now=clock).issue("ann"),
    )
    assert own.holder(token) == "ann"
    assert [own.holder(each) for each in foreign] == [None] * len(foreign)


def test_a_clock_that_was_wrong(users: Users) -> None:
    """What was issued while the clock was ahead does not last longer than any other."""
    clock = Clock()
    own = OwnTokens(KEY, users, issuer=ISSUER, now=clock)
    token = own.issue("ann")
    clock.now -= SLACK_SECONDS
    assert own.holder(token) == "ann"
    clock.now -= 1
    assert own.holder(token) is None


def test_a_user_who_is_none_any_more(tmp_path: Path, users: Users) -> None:
    """A user who is gone, or has another password, has no token; everybody else has."""
    clock = Clock()
    own = OwnTokens(KEY, users, issuer=ISSUER, now=clock)
    given = {name: own.issue(name) for name in ("ann", "bob", "")}
    for text, left in ((f"ann:{OTHER}\nbob:{SECRET}\n", {"bob", ""}), (f"ann:{SECRET}\n", {"ann", ""})):
        later = open_users(tmp_path, text)
        again = OwnTokens(KEY, later, issuer=ISSUER, now=clock)
        assert {name for name, token in given.items() if again.holder(token) == name} == left
        later.close()
    with pytest.raises(TokenError, match="no such user"):
        own.issue("eve")


def test_marks(users: Users) -> None:
    """It is seen in any text, good or not, and others' are not."""
    own = OwnTokens(KEY, users, issuer=ISSUER)
    assert own.are_in(f"x, Bearer {own.issue('')}, y")
    assert own.are_in(f"mitm-cache.{ISSUER}.no token")
    assert not own.are_in(f"Bearer {OwnTokens(KEY, users, issuer='ff').issue('')}")


# --- the key -----------------------------------------------------------------------------------------------------


def test_the_key_is_made_once(tmp_path: Path) -> None:
    """Of all who need it at once one makes it, for its owner alone, and nothing else is left."""
    path, found, barrier = tmp_path / "tokens.key", [], threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        found.append(read_or_make(path))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == {path.read_bytes()}
    assert len(found[0]) == SIZE
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        pytest.param(b"", 0o600, "is damaged: the key of the tokens has 32 bytes; remove it", id="empty"),
        pytest.param(KEY[1:], 0o600, "is damaged", id="short"),
        pytest.param(KEY + b"\n", 0o600, "is damaged", id="long"),
        pytest.param(KEY, 0o640, r"may be read by others \(mode 0640\)", id="open to others"),
    ],
)
def test_a_key_that_is_none(tmp_path: Path, content: bytes, mode: int, message: str) -> None:
    """It is named, with the cure, and left as it is."""
    path = tmp_path / "tokens.key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=message) as caught:
        read_or_make(path)
    assert str(path) in caught.value.message
    assert path.read_bytes() == content


def test_no_file_at_all(tmp_path: Path) -> None:
    """Nothing is waited for, and nothing raises another error."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "dangling", tmp_path / "none" / "key"):
        with pytest.raises(ConfigError, match="the key of the tokens"):
            read_or_make(path)
