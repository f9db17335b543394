"""Root is given up for good once the sockets are bound: groups, then group, then user, and no way back."""

import logging
import os
import pwd
import stat
from pathlib import Path

from mitm_cache.config import SYSTEM_DATA, Config
from mitm_cache.errors import ConfigError
from mitm_cache.workers.kernel import forbid_privileges

logger = logging.getLogger(__name__)

ROOT_WARNING = (
    "running as root, which this needs for nothing but low ports: serve --user NAME binds them and gives root up"
)


def find(name: str) -> pwd.struct_passwd:
    """The user that the service is to run as. Raises ConfigError."""
    if os.geteuid() != 0:
        raise ConfigError(f"--user {name}: only root can become another user; run this as {name}, or leave it out")
    try:
        user = pwd.getpwnam(name)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"--user {name}: there is no such user; useradd --system {name} makes one") from error
    if user.pw_uid == 0:
        raise ConfigError(f"--user {name}: that is root; name a user without rights")
    return user


def give_folders(config: Config, user: pwd.struct_passwd) -> None:
    """Make the data directory and the CA's, the user's own, where they do not exist. Raises ConfigError where one that
    does is another's."""
    for key, folder in (("data_dir", config.data_dir), ("ca.dir", config.ca_dir)):
        try:
            _give(folder, user)
            owner = _other_owner(folder, user)
        except OSError as error:
            raise ConfigError(f"{key} {folder} cannot be used: {error.strerror}") from error
        # A key that root owns may be read by the user's group, who then cannot change it.
        if owner is not None and not (key == "ca.dir" and _is_read_by(folder / "ca.key", user)):
            raise ConfigError(
                f"{key} {folder} is not {user.pw_name}'s: {owner} belongs to another; run: "
                f"chown -R {user.pw_name}: {folder}"
            )


def _give(folder: Path, user: pwd.struct_passwd) -> None:
    if folder.exists():
        return
    folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(descriptor, user.pw_uid, user.pw_gid)
    finally:
        os.close(descriptor)


def _other_owner(folder: Path, user: pwd.struct_passwd) -> Path | None:
    """What of a folder, two levels deep, is not the user's."""
    if folder.stat().st_uid != user.pw_uid:
        return folder
    within = (path for pattern in ("*", "*/*") for path in folder.glob(pattern))
    return next((path for path in within if path.name != "lost+found" and not _is_of(path, user)), None)


def _is_of(path: Path, user: pwd.struct_passwd) -> bool:
    try:
        return path.lstat().st_uid == user.pw_uid
    except FileNotFoundError:
        return True  # it was there a moment ago


def _is_read_by(key: Path, user: pwd.struct_passwd) -> bool:
    try:
        facts = key.stat()
    except OSError:
        return False
    return bool(facts.st_mode & stat.S_IRGRP) and facts.st_gid in _groups(user)


def _groups(user: pwd.struct_passwd) -> list[int]:
    return os.getgrouplist(user.pw_name, user.pw_gid)


def drop(user: pwd.struct_passwd) -> None:
    """Become the user, for good, and tell the environment. Raises ConfigError where the system does not let us, or
    would let us back."""
    try:
        os.setgroups(_groups(user))
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        forbid_privileges()
    except OSError as error:
        raise ConfigError(f"--user {user.pw_name}: root cannot be given up: {error.strerror}") from error
    if set(os.getresuid()) != {user.pw_uid} or set(os.getresgid()) != {user.pw_gid} or _is_root_again():
        raise ConfigError(f"--user {user.pw_name}: root was given up and could be had again")
    os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)
    # Where the data directory is by default must not change with the user; XDG_DATA_HOME decides it for all but root.
    os.environ["XDG_DATA_HOME"] = str(SYSTEM_DATA.parent)


def _is_root_again() -> bool:
    for become in (os.setuid, os.setgid, os.seteuid, os.setegid):
        try:
            become(0)
        except PermissionError:
            continue
        return True
    return False


def warn_of_root(user: str) -> None:
    """Say so where this runs as root for no reason."""
    if os.geteuid() == 0 and not user:
        logger.warning("%s", ROOT_WARNING)
