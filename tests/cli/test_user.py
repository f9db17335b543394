"""`mitm-cache user`."""

import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import bcrypt
import pytest
from click.testing import CliRunner, Result

from mitm_cache.cli import main
from mitm_cache.users import file
from tests.needs import needs_root

QUICK = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users"


def invoke(path: Path, *arguments: str, given: str = "") -> Result:
    environ = {"MITM_CACHE_CLIENTS_USERS_FILE": str(path), "MITM_CACHE_DATA_DIR": str(path.parent / "data")}
    return CliRunner().invoke(main, ["--config", "/dev/null", "user", *arguments], env=environ, input=given)


def add(path: Path, name: str, password: str) -> Result:
    return invoke(path, "add", name, "--password-stdin", given=password)


def test_the_life_of_a_user(path: Path) -> None:
    """A user is added to a file that is made for its owner only, has another password, and is removed."""
    first = add(path, "ann", "planted\n")
    assert (first.exit_code, first.output) == (0, f"ann added to {path}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith("ann:$2b$12$")
    assert "planted" not in path.read_text()
    assert add(path, "bob", "b").exit_code == 0
    assert invoke(path, "list").output == "ann\nbob\n"
    assert invoke(path, "verify", "ann", "--password-stdin", given="planted").exit_code == 0
    assert add(path, "ann", "other").output == f"ann has another password in {path}\n"
    wrong = invoke(path, "verify", "ann", "--password-stdin", given="planted")
    assert (wrong.exit_code, wrong.output) == (1, "wrong, or there is no user 'ann'\n")
    assert invoke(path, "verify", "eve", "--password-stdin", given="other").exit_code == 1
    assert invoke(path, "remove", "ann").output == f"ann removed from {path}\n"
    assert invoke(path, "list").output == "bob\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["users"]


def test_other_lines_stay(path: Path) -> None:
    """Comments, order and the lines of others are left as they are, and so is the mode."""
    path.write_text(f"# the team\nann:{QUICK}\n\n# CI\nbob:{QUICK}")
    path.chmod(0o400)
    assert add(path, "ann", "new").exit_code == 0
    assert add(path, "carl", "new").exit_code == 0
    lines = path.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["# the team", "ann", "", "# CI", "bob", "carl"]
    assert lines[4] == f"bob:{QUICK}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o400


@needs_root()
def test_the_service_still_reads_it(path: Path) -> None:
    """What root gave to a group stays the group's."""
    path.write_text("")
    os.chown(path, 0, 4242)
    path.chmod(0o640)
    assert add(path, "ann", "new").exit_code == 0
    facts = path.stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (0, 4242, 0o640)


def test_a_link_stays_one(path: Path) -> None:
    """A file that a link leads to is replaced where it is."""
    real = path.with_name("real")
    real.touch(mode=0o600)
    path.symlink_to(real)
    assert add(path, "ann", "new").exit_code == 0
    assert path.is_symlink()
    assert list(file.read(real).hashes) == ["ann"]


@pytest.mark.parametrize("name", ["private", "any", "loopback", "10.0.0.0/8", "fd00::1", "a:b", "a\nb", "", "#x", "*"])
def test_names(path: Path, name: str) -> None:
    """What is no name is refused before a password is asked for, and no file is made."""
    result = add(path, name, "x")
    assert result.exit_code == 1
    assert "is no user's name" in result.output
    assert not path.exists()


@pytest.mark.parametrize(("password", "message"), [("", "not empty"), ("x" * 73, "72 bytes"), ("a\nb\n", "one line")])
def test_passwords(path: Path, password: str, message: str) -> None:
    """So is a password that bcrypt would not take as it is."""
    result = add(path, "ann", password)
    assert result.exit_code == 1
    assert message in result.output
    assert not path.exists()


def test_errors(path: Path, tmp_path: Path) -> None:
    """What is wrong is one line; a file that is wrong is left as it is."""
    result = CliRunner().invoke(main, ["--config", "/dev/null", "user", "list"], env={"MITM_CACHE_DATA_DIR": "/x"})
    assert result.output.startswith("Error: clients.users_file is not set; name a file, such as users_file = ")
    assert "is missing; 'mitm-cache user add NAME' makes it" in invoke(path, "list").output
    path.write_text("ann:planted\n")
    path.chmod(0o600)
    for arguments in (["list"], ["remove", "ann"], ["add", "ann", "--password-stdin"]):
        result = invoke(path, *arguments, given="x")
        assert result.exit_code == 1
        assert "line 1 is not NAME:HASH with a hash of bcrypt" in result.output
        assert "planted" not in result.output
    assert path.read_text() == "ann:planted\n"
    path.write_text(f"ann:{QUICK}\n")
    assert f"{path} has no user 'bob'" in invoke(path, "remove", "bob").output
    path.chmod(0o644)
    assert f"chmod 600 {path}" in add(path, "bob", "x").output
    assert "cannot be written: No such file or directory" in add(tmp_path / "nowhere" / "users", "a", "x").output
    assert "use --password-stdin" in invoke(path, "add", "bob").output


@pytest.mark.parametrize(("typed", "added"), [(["planted", "planted"], True), (["planted", "typo", "a", "a"], True)])
def test_a_terminal_is_asked_twice(path: Path, typed: list[str], added: bool) -> None:
    """On a terminal the password is typed twice, until both are one, and never shown."""
    environ = {**os.environ, "MITM_CACHE_CLIENTS_USERS_FILE": str(path)}
    command = [sys.executable, "-m", "mitm_cache", "--config", "/dev/null", "user", "add", "ann"]
    master, slave = pty.openpty()
    seen = b""
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True
    ) as process:
        os.close(slave)
        for number, word in enumerate(typed, 1):
            while seen.count(b": ") - seen.count(b"Error: ") < number:
                seen += os.read(master, 1024)
            os.write(master, word.encode() + b"\n")
        try:
            while more := os.read(master, 1024):
                seen += more
        except OSError:
            pass  # its end
        os.close(master)
    assert (process.returncode == 0) is added
    assert b"planted" not in seen
    assert file.read(path).hashes.keys() == {"ann"}
