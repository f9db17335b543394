"""The users file and who has the right password."""

import asyncio
import logging
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.errors import ClientError, ConfigError
from mitm_cache.users import Users, file
from mitm_cache.users.attempts import BUDGET, MAX_CLIENTS, PERIOD, Attempts
from mitm_cache.users.file import UsersFile
from mitm_cache.users.table import MAX_PASSWORD, Table, check_name, fits, make_hash, parse, replace
from mitm_cache.users.users import KEEP_SECONDS, LOOK_SECONDS, MAX_KEPT
from mitm_cache.wire.basic import Basic
from tests.needs import needs_tool

QUICK = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
OTHER = bcrypt.hashpw(b"other", bcrypt.gensalt(4)).decode()
ANN = Basic("ann", b"secret")


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, text: str, *, age: float = 100) -> Path:
    """A file as an editor leaves it, changed some seconds ago."""
    path.write_text(text)
    path.chmod(0o600)
    at = time.time() - age
    os.utime(path, (at, at))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "users", f"# the team\n\nann:{QUICK}\nbob:{OTHER}\n")


@asynccontextmanager
async def opened(path: Path, clock: Callable[[], float]) -> AsyncIterator[Users]:
    users = Users(UsersFile(path), clock=clock)
    try:
        yield users
    finally:
        users.close()


# --- the table ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2a", "2b", "2y"])
def test_versions(version: str) -> None:
    """Every name that bcrypt's hashes go by."""
    hash_ = f"${version}{QUICK[3:]}"
    table = parse(f"ann:{hash_}\r\n".encode(), where="users")
    assert table.hashes == {"ann": hash_}
    assert fits(hash_, b"secret")
    assert not fits(hash_, b"Secret")


SHA = "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ="
MD5 = "$apr1$5jZbUB3l$CWDVJY2Dk8Xo0pXnVh5sZ."


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("ann:planted", "is not NAME:HASH with a hash of bcrypt", id="clear text"),
        pytest.param(f"ann:{SHA}", "is not NAME:HASH with a hash of bcrypt", id="SHA"),
        pytest.param(f"ann:{MD5}", "'mitm-cache user add NAME', or 'htpasswd -B'", id="MD5"),
        pytest.param(f"ann:$2x{QUICK[3:]}", "$2a$, $2b$ or $2y$", id="the broken bcrypt"),
        pytest.param(f"ann:$2b$31${QUICK[7:]}", "cost 04 to 15", id="hours for each check"),
        pytest.param(f"ann:$2b$03${QUICK[7:]}", "cost 04 to 15", id="less than bcrypt takes"),
        pytest.param(f"ann:{QUICK}:more", "is not NAME:HASH", id="a third part"),
        pytest.param("planted", "is not NAME:HASH", id="no colon"),
        pytest.param(f":{QUICK}", "is no user's name", id="no name"),
        pytest.param(f"private:{QUICK}", "is no user's name", id="a network"),
        pytest.param(f"bob:{QUICK}", "the name stands in line 2 already", id="twice"),
    ],
)
def test_refused_lines(line: str, message: str) -> None:
    """A line that is none is named by its number, with what is allowed; what it holds is not shown."""
    with pytest.raises(ConfigError) as caught:
        parse(f"# users\nbob:{OTHER}\n\n{line}\n".encode(), where="/etc/users")
    assert caught.value.message.startswith("/etc/users, line 4")
    assert message in caught.value.message
    assert "planted" not in caught.value.message
    assert QUICK[7:] not in caught.value.message


def test_not_text() -> None:
    """So is one that is no text."""
    with pytest.raises(ConfigError, match="line 2 is not text in UTF-8"):
        parse(b"# a\n\xff:x\n", where="users")


@pytest.mark.parametrize(
    "name",
    ["loopback", "private", "any", "anyone", "nobody", "*", "10.0.0.0/8", "10.0.0.1", "10.0.0", "1234", "a/b", "",
     "a:b", "::1", "a\nb", "a\tb", " a", "a ", "#a", "a\u2028b", "a" * 256],
)  # fmt: skip
def test_names_that_are_none(name: str) -> None:
    """What would mean a network or another word in a rule, or break a line, is no user's name."""
    with pytest.raises(ConfigError, match="is no user's name"):
        check_name(name)


@pytest.mark.parametrize(
    "name", ["ann", "CI-bot_2", "team.app", "jürgen", "a b", "ann@example.com", "1234x", "robot$ci"]
)
def test_names(name: str) -> None:
    """Others are."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("password", "message"),
    [("", "is not empty"), ("x" * 73, "at most 72 bytes; this one has 73"), ("ü" * 37, "this one has 74"),
     ("a\nb", "one line"), ("a\0b", "one line")],
)  # fmt: skip
def test_passwords_that_are_none(password: str, message: str) -> None:
    """What bcrypt would cut or take otherwise is refused."""
    with pytest.raises(ConfigError, match=message):
        make_hash(password)


def test_what_bcrypt_leaves_out_counts() -> None:
    """A password is no other one that begins with the same 72 bytes."""
    hash_ = bcrypt.hashpw(b"x" * MAX_PASSWORD, bcrypt.gensalt(4)).decode()
    assert fits(hash_, b"x" * MAX_PASSWORD)
    assert not fits(hash_, b"x" * (MAX_PASSWORD + 1))


def test_strangers_take_as_long() -> None:
    """For a name that is no user's there is a hash of the highest cost of the file, which nothing fits."""
    table = parse(f"ann:{QUICK}\nbob:$2b$06${OTHER[7:]}\n".encode(), where="users")
    stranger = table.hash_for("eve")
    assert stranger.startswith("$2b$06$")
    assert not fits(stranger, b"")
    assert not fits(stranger, b"secret")
    assert Table().hash_for("eve").startswith("$2b$12$")


WORDS = {"any", "anyone", "loopback", "nobody", "private"}
names = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters=":#/*."), min_size=1, max_size=20
).filter(lambda name: name not in WORDS and not (name.isascii() and name.isdigit()))
users = st.dictionaries(names, st.sampled_from([QUICK, OTHER]))
noise = st.sampled_from(["", "#", "# a: comment", "   ", "\t#x", "#ann:x", "# \u2028 one line"])


@given(users, st.lists(noise), st.sampled_from(["\n", "\r\n"]), st.randoms(use_true_random=False))
def test_parse_is_the_inverse_of_writing(known: dict[str, str], more: list[str], end: str, random: object) -> None:
    """Users are found among comments and empty lines, whatever the order and the ends of lines."""
    lines = [*more, *(f"{name}:{hash_}" for name, hash_ in known.items())]
    random.shuffle(lines)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    assert parse(end.join(lines).encode(), where="users").hashes == known


@given(st.binary())
def test_anything_is_parsed_or_refused(content: bytes) -> None:
    """No content raises anything but the error that names a line."""
    said = "users, line "
    try:
        parse(content, where="users")
    except ConfigError as error:
        said = error.message
    assert said.startswith("users, line ")


@given(users, st.lists(noise), names, st.booleans())
def test_editing(known: dict[str, str], more: list[str], name: str, last_end: bool) -> None:
    """A user's line is written or taken out, and every other line stays as it was, byte for byte."""
    text = "\n".join([*more, *(f"{user}:{hash_}" for user, hash_ in known.items())]) + "\n" * last_end
    added = replace(text.encode(), name, OTHER, where="users").decode()
    others = [line for line in text.split("\n") if line.partition(":")[0] != name]
    assert [line for line in added.split("\n") if line and line.partition(":")[0] != name] == [x for x in others if x]
    assert parse(added.encode(), where="users").hashes == {**known, name: OTHER}
    removed = replace(added.encode(), name, None, where="users")
    assert parse(removed, where="users").hashes == {user: known[user] for user in known if user != name}


# --- the file ----------------------------------------------------------------------------------------------------


@needs_tool("htpasswd", package="apache2-utils")
@pytest.mark.parametrize("password", ["secret", "a:b $%", "pässwort", "x" * 72])
def test_what_htpasswd_writes(tmp_path: Path, password: str) -> None:
    """Apache's own program and this one read the same file."""
    path = tmp_path / "users"
    for number, arguments in enumerate((["-cbB"], ["-bB", "-C", "6"])):
        subprocess.run(["htpasswd", *arguments, str(path), f"user{number}", password], check=True, capture_output=True)
    path.chmod(0o600)
    table = file.read(path)
    assert list(table.hashes) == ["user0", "user1"]
    assert all(fits(hash_, password.encode()) for hash_ in table.hashes.values())
    file.add(path, "user2", password)
    check = ["htpasswd", "-vb", str(path), "user2", password]
    assert subprocess.run(check, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o644, 0o660])
def test_open_to_others(path: Path, mode: int) -> None:
    """A file that others may read or write is refused, with the command that closes it."""
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"may be read by others \(mode {mode:04o}\): chmod 600 {path}"):
        UsersFile(path)


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there, or is none, is refused; nothing is waited for."""
    with pytest.raises(ConfigError, match="is missing; 'mitm-cache user add NAME' makes it"):
        UsersFile(tmp_path / "users")
    with pytest.raises(ConfigError, match=r"cannot be read|is not a file"):
        UsersFile(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="is not a file"):
        UsersFile(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="more than"):
        UsersFile(write(tmp_path / "long", "#" * (2 << 20)))


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        pytest.param(lambda path: path.unlink(), "is missing", id="gone"),
        pytest.param(lambda path: path.chmod(0o644), "may be read by others", id="open"),
        pytest.param(lambda path: write(path, "ann:planted\n"), "line 1 is not NAME:HASH", id="malformed"),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), "cannot be read|is not a file", id="a directory"),
    ],
)
def test_what_was_good_stays(
    path: Path, caplog: pytest.LogCaptureFixture, breakage: Callable[[Path], object], message: str
) -> None:
    """A file that is broken keeps the users of before, with one warning; mended, it is read again."""
    known = UsersFile(path)
    breakage(path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert set(known.look().hashes) == {"ann", "bob"}
        [record] = caplog.records
        assert "the users are those of before" in record.getMessage()
        assert pytest.raises(ValueError, match=message).matches(ValueError(record.getMessage()))
        assert "planted" not in caplog.text
        if path.is_dir():
            path.rmdir()
        write(path, f"carl:{QUICK}\n")
        assert set(known.look().hashes) == {"carl"}
        assert "can be read again" in caplog.records[-1].getMessage()


def test_changes_within_one_tick(path: Path) -> None:
    """A file that was changed a moment ago is read again even where its time and size are the same."""
    write(path, f"ann:{QUICK}\n", age=0)
    known = UsersFile(path)
    facts = path.stat()
    with path.open("r+") as opened:
        opened.write(f"eve:{QUICK}\n")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert set(known.look().hashes) == {"eve"}


def test_an_unchanged_file_is_not_read(path: Path) -> None:
    """The look at a file that stayed as it is is a stat, and the table is the same object."""
    known = UsersFile(path)
    assert known.look() is known.table is known.look()


def test_editors_wait_for_each_other(path: Path) -> None:
    """Users that are added at once are all there afterwards, and nothing else is left in the directory."""
    threads = [threading.Thread(target=file.add, args=(path, f"user{n}", "x")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(file.read(path).hashes) == {"ann", "bob", *(f"user{n}" for n in range(4))}
    assert [entry.name for entry in path.parent.iterdir()] == ["users"]


# --- passwords ---------------------------------------------------------------------------------------------------


async def test_check(path: Path) -> None:
    """Right is right and all else is not."""
    async with opened(path, Clock()) as known:
        assert await known.check("10.0.0.1", ANN)
        for login in (Basic("ann", b"other"), Basic("ann", b""), Basic("eve", b"secret"), Basic("", b""),
                      Basic("ann", b"secret" + b"\0"), Basic("ann", b"x" * 5000)):  # fmt: skip
            assert not await known.check("10.0.0.1", login)
        assert known.knows("ann")
        assert not known.knows("eve")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every question to bcrypt."""
    seen: list[str] = []
    real = bcrypt.checkpw

    def note(password: bytes, hash_: bytes) -> bool:
        seen.append(threading.current_thread().name)
        return real(password, hash_)

    monkeypatch.setattr(bcrypt, "checkpw", note)
    return seen


async def test_answers_are_remembered(path: Path, asked: list[str]) -> None:
    """bcrypt is asked once for each pair, right or wrong or a stranger's, in a thread of its own, for some minutes."""
    clock = Clock()
    async with opened(path, clock) as known:
        for login in (ANN, Basic("ann", b"wrong"), Basic("eve", b"secret")):
            asked.clear()
            assert known.recall(login) is None
            first = await known.check("10.0.0.1", login)
            assert known.recall(login) is first
            assert await known.check("10.0.0.2", login) is first
            assert len(asked) == 1
            assert asked[0].startswith("password")
        clock.now += KEEP_SECONDS
        assert await known.check("10.0.0.1", ANN)
        assert len(asked) == 2


async def test_one_question_for_all_who_wait(path: Path, asked: list[str]) -> None:
    """A hundred requests with one password at once cost one bcrypt, and one of the budget."""
    async with opened(path, Clock()) as known:
        assert all(await asyncio.gather(*(known.check("10.0.0.1", ANN) for _ in range(100))))
    assert len(asked) == 1


async def test_a_change_counts_at_once(path: Path) -> None:
    """A user who is removed or has another password is another one a second later; what was remembered is void."""
    clock = Clock()
    async with opened(path, clock) as known:
        assert await known.check("10.0.0.1", ANN)
        write(path, f"ann:{OTHER}\n", age=50)
        assert known.recall(ANN)  # it is not looked more often
        clock.now += LOOK_SECONDS
        assert known.recall(ANN) is None
        assert not await known.check("10.0.0.1", ANN)
        assert await known.check("10.0.0.1", Basic("ann", b"other"))
        write(path, f"bob:{OTHER}\n", age=40)
        clock.now += LOOK_SECONDS
        assert not await known.check("10.0.0.1", Basic("ann", b"other"))


async def test_whoever_tries_passwords_is_held_up(path: Path, asked: list[str]) -> None:
    """One client has a budget of wrong passwords, also at once; others are served, and so is who is remembered."""
    clock = Clock()
    async with opened(path, clock) as known:
        assert await known.check("10.0.0.1", ANN)
        asked.clear()
        tries = [known.check("10.0.0.1", Basic("ann", b"%d" % n)) for n in range(BUDGET + 5)]
        answers = await asyncio.gather(*tries, return_exceptions=True)
        assert answers[:BUDGET] == [False] * BUDGET
        for refused in answers[BUDGET:]:
            assert isinstance(refused, ClientError)
            assert (refused.status, refused.code) == (429, "TOOMANYREQUESTS")
        assert len(asked) == BUDGET
        assert await known.check("10.0.0.1", ANN)
        assert await known.check("10.0.0.2", Basic("bob", b"other"))
        clock.now += PERIOD / BUDGET
        assert not await known.check("10.0.0.1", Basic("ann", b"once more"))
        with pytest.raises(ClientError, match="too many passwords"):
            await known.check("10.0.0.1", Basic("ann", b"and again"))


async def test_right_passwords_cost_nothing(tmp_path: Path) -> None:
    """Many users behind one address all get in, one after the other."""
    lines = "".join(f"user{n}:{QUICK}\n" for n in range(3 * BUDGET))
    async with opened(write(tmp_path / "users", lines), Clock()) as known:
        for number in range(3 * BUDGET):
            assert await known.check("10.0.0.1", Basic(f"user{number}", b"secret"))


async def test_the_loop_goes_on(tmp_path: Path) -> None:
    """While bcrypt works the event loop does too."""
    hash_ = bcrypt.hashpw(b"secret", bcrypt.gensalt(11)).decode()
    async with opened(write(tmp_path / "users", f"ann:{hash_}\n"), time.monotonic) as known:
        turns = 0
        async with asyncio.TaskGroup() as group:
            check = group.create_task(known.check("10.0.0.1", ANN))
            while not check.done():
                await asyncio.sleep(0)
                turns += 1
        assert check.result()
    assert turns > 100


async def test_a_change_while_it_is_asked(path: Path) -> None:
    """A password that was right when it was asked for, and is another one by the answer, is not right any more."""
    clock, may_go = Clock(), threading.Event()
    async with opened(path, clock) as known:
        await known.look()
        for _ in range(known._pool._max_workers):
            known._pool.submit(may_go.wait, 20)
        async with asyncio.TaskGroup() as group:
            check = group.create_task(known.check("10.0.0.1", ANN))
            await asyncio.sleep(0)
            assert known._asked
            write(path, f"ann:{OTHER}\n", age=50)
            clock.now += LOOK_SECONDS
            await known.look()
            may_go.set()
        assert not check.result()


async def test_a_client_that_leaves(path: Path) -> None:
    """Who is gone before the answer leaves it to those who wait for the same."""
    async with opened(path, Clock()) as known, asyncio.TaskGroup() as group:
        first = group.create_task(known.check("10.0.0.1", ANN))
        second = group.create_task(known.check("10.0.0.1", ANN))
        await asyncio.sleep(0)
        first.cancel()
        assert await second


def test_attempts() -> None:
    """A budget fills with time; an IPv6 client is its network; the number of clients is bounded."""
    clock = Clock()
    attempts = Attempts(clock)
    assert [attempts.spend("fd00::1") for _ in range(BUDGET)] == [True] * BUDGET
    assert not attempts.spend("fd00::2:3")
    assert attempts.spend("fd00:0:0:1::1")
    assert attempts.spend("no address")
    attempts.give_back("fd00::1")
    assert attempts.spend("fd00::1")
    clock.now += 10 * PERIOD
    assert [attempts.spend("fd00::1") for _ in range(BUDGET + 1)] == [True] * BUDGET + [False]
    for number in range(MAX_CLIENTS + 10):
        attempts.spend(f"10.{number >> 8}.{number & 255}.1")
    assert len(attempts._left) == MAX_CLIENTS


async def test_what_is_remembered_is_bounded(path: Path) -> None:
    """However many are tried, some thousands are remembered, and they are no passwords."""
    async with opened(path, Clock()) as known:
        for number in range(MAX_KEPT + 10):
            known._wrong.put(number.to_bytes(4))
        assert len(known._wrong._until) == MAX_KEPT
        assert await known.check("10.0.0.1", ANN)
        assert [key for key in known._right._until if b"secret" in key or len(key) != 32] == []
