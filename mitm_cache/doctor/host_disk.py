"""What the cache host keeps: the data directory, the room on its disk, and the CA."""

import json
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mitm_cache.ca import CERTIFICATE_FILE, KEY_FILE, CertificateAuthority
from mitm_cache.ca.files import is_exposed
from mitm_cache.ca.rotation import Pair
from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.layout import FORMAT
from mitm_cache.config import Config
from mitm_cache.doctor import processes
from mitm_cache.doctor.finding import Finding, fail, ok, skip, warn
from mitm_cache.doctor.scene import Scene
from mitm_cache.doctor.service import Service
from mitm_cache.errors import ConfigError
from mitm_cache.units import size

FOLDERS = ("blobs", "spool", "links", "index", "run")
USER = "mitm-cache"
"""The user of the packaged service."""
LEAST = 64 << 20
"""Bytes without which no image arrives."""
SOON = timedelta(days=30)
ANEW = "mitm-cache ca rotate, install-ca.sh with ca export on every node, then mitm-cache ca rotate --finish"


def check_data(scene: Scene, config: Config, service: Service) -> Iterator[Finding]:
    """Whether the data directory is there, of this format, and its service's own."""
    root = config.data_dir
    if (elsewhere := service.document.get("data_dir", str(root))) != str(root):
        words = f"the service that runs has {elsewhere}: this is not its configuration"
        yield fail("data", str(root), words, f"mitm-cache --config FILE doctor, or --data-dir {elsewhere}")
        return
    if not root.is_dir():
        words = "it is a file" if root.exists() else "it is not there yet"
        cure = f'sudo systemctl start mitm-cache makes it; or data_dir = "PATH" in {scene.file}'
        yield (fail if root.exists() or service.alive else warn)("data", str(root), words, cure)
        return
    if not os.access(root, os.R_OK | os.X_OK):
        yield skip("data", str(root), "it may not be read by this user", "sudo mitm-cache doctor --host")
        return
    yield from judge_format(root)
    yield from judge_rights(root, user_of(scene, root, service))


def judge_format(root: Path) -> Iterator[Finding]:
    """FORMAT tells which version of the program can use the directory."""
    marker = root / "FORMAT"
    restore = "restore it from the backup, or move everything but ca/ away and start empty (docs/operations.md)"
    try:
        document = json.loads(marker.read_text())
        version, identity = int(document["format"]), str(document["identity"])
    except FileNotFoundError:
        foreign = sorted(entry.name for entry in root.iterdir() if entry.name not in ("ca", "lost+found"))
        if foreign:
            words = f"it has no FORMAT and holds {foreign[0]!r}: it is no data directory of mitm-cache"
            yield fail("data", str(marker), words, 'data_dir = "PATH" of an empty or new one')
        else:
            yield warn(
                "data", str(marker), "not there: the service has never run on it", "sudo systemctl start mitm-cache"
            )
    except OSError as error:
        yield fail("data", str(marker), f"cannot be read: {error.strerror}", f"sudo chown -R {USER}: {root}")
    except (ValueError, KeyError, TypeError):
        yield fail("data", str(marker), "is damaged", restore)
    else:
        if version != FORMAT:
            words = f"says format {version}, and this version knows {FORMAT}"
            yield fail("data", str(marker), words, f"install the version that wrote it; or {restore}")
        else:
            yield ok("data", str(marker), f"format {version}, identity {identity}")


@dataclass(frozen=True, slots=True)
class User:
    """Who the service runs as."""

    uid: int
    groups: frozenset[int]
    name: str

    @classmethod
    def of(cls, uid: int) -> "User":
        """By user id, known to the system or not."""
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return cls(uid, frozenset(), str(uid))
        return cls(uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)), entry.pw_name)

    def may(self, path: Path, wanted: int) -> bool:
        """Whether the mode of a file gives this user these rights (of 4 read, 2 write, 1 enter)."""
        status = path.stat()
        if self.uid == 0:
            return True
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in self.groups else 0
        return status.st_mode >> shift & wanted == wanted


def user_of(scene: Scene, root: Path, service: Service) -> User:
    """The user of the running service; else the packaged one where it owns the directory; else the owner."""
    running = processes.owner(scene.proc, service.pid) if service.pid is not None else None
    if running is not None:
        return User.of(running)
    if os.geteuid() == 0:
        try:
            return User.of(pwd.getpwnam(USER).pw_uid)
        except KeyError:
            pass  # a service that was not installed as a package: whoever owns the directory
    return User.of(root.stat().st_uid)


def judge_rights(root: Path, user: User) -> Iterator[Finding]:
    """The service's user must be able to write everywhere below."""
    subject = f"{root} for {user.name}"
    if os.statvfs(root).f_flag & os.ST_RDONLY:
        yield fail(
            "data", subject, "its file system is mounted read-only", f"sudo mount -o remount,rw {_mount(root)}; dmesg"
        )
        return
    places = [root, *(root / name for name in FOLDERS), root / "ca"]
    wrong = [path for path in places if path.exists() and not user.may(path, 7)]
    files = [root / "FORMAT", root / "ca" / KEY_FILE, root / "ca" / CERTIFICATE_FILE]
    if not wrong:
        wrong = [path for path in files if path.exists() and not user.may(path, 4)]
    if wrong:
        yield fail("data", subject, f"{wrong[0]} is not its own to use", f"sudo chown -R {user.name}: {root}")
    else:
        yield ok("data", subject, "can be written")


def _mount(path: Path) -> Path:
    path = path.resolve()
    while not path.is_mount():
        path = path.parent
    return path


def check_disk(config: Config, service: Service) -> Iterator[Finding]:
    """The room on the file system against cache.max_size."""
    root = config.data_dir
    if not root.is_dir():
        yield skip("disk", str(root), "it is not there", "see the line of data")
        return
    status = os.statvfs(root)
    total, free = status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail
    held = service.blobs
    if held is None:
        held = Blobs(root / "blobs").measure()[1] if (root / "blobs").is_dir() else 0
    yield judge_disk(root, total=total, free=free, held=held, limit=config.max_size.of(total))


def judge_disk(root: Path, *, total: int, free: int, held: int, limit: int) -> Finding:
    """All in bytes: the file system, what is free, what blobs have, and what they may have."""
    words = f"{size(free)} free of {size(total)}; blobs have {size(held)} of {size(limit)}"
    if limit > total:
        return fail(
            "disk",
            str(root),
            f"{words}: cache.max_size is more than the file system",
            'cache.max_size = "80%", or a file system of its own',
        )
    if free < max(LEAST, total // 100):
        return fail(
            "disk",
            str(root),
            f"{words}: there is no room for downloads",
            f"free some (du -xsh {_mount(root)}/*), or a smaller cache.max_size, then restart",
        )
    if limit - held > free:
        return warn(
            "disk",
            str(root),
            f"{words}: others need the disk too, and it fills before the limit",
            f'cache.max_size = "{max(1, (held + free * 9 // 10) >> 20)}M", or a file system of its own',
        )
    return ok("disk", str(root), words)


def check_ca(scene: Scene, config: Config, service: Service) -> Iterator[Finding]:
    """Whether the CA is there, its key secret, valid, and allowed to sign for what is configured."""
    key, certificate = config.ca_dir / KEY_FILE, config.ca_dir / CERTIFICATE_FILE
    try:
        there = [path for path in (key, certificate) if path.exists()]
    except PermissionError:
        there = [key]
    if not there:
        yield (fail if service.alive else warn)(
            "ca",
            str(config.ca_dir),
            "there is no CA yet",
            "mitm-cache ca init as the service's user; or start the service, which makes it",
        )
        return
    if len(there) == 2 and is_exposed(facts := key.stat()):
        mode = stat.S_IMODE(facts.st_mode)
        yield fail("ca", str(key), f"others may read the key (mode {mode:04o})", f"sudo chmod 600 {key}")
        return
    try:
        pair = Pair.load(config.ca_dir)
    except ConfigError as error:
        if "Permission denied" in error.message and os.geteuid() != 0:
            yield skip("ca", str(config.ca_dir), "it may not be read by this user", "sudo mitm-cache doctor --host")
        else:
            cure = "restore ca/ from the backup; or mitm-cache ca init --force, and install-ca.sh on every node"
            yield fail("ca", str(config.ca_dir), error.message, cure)
        return
    now = datetime.fromtimestamp(scene.now(), UTC)
    for role, authority in pair.by_role(now).items():
        if role != "previous":
            yield judge_validity(authority, now)
            yield judge_cover(authority, config)


def judge_validity(authority: CertificateAuthority, now: datetime) -> Finding:
    """The days that are left of the CA."""
    described = authority.describe()
    if now < described.not_before:
        return fail(
            "ca",
            str(described.path),
            f"is valid from {described.not_before}, and it is {now}",
            "timedatectl set-ntp true",
        )
    left = described.not_after - now
    if left <= timedelta(0):
        return fail(
            "ca",
            str(described.path),
            f"ended {(now - described.not_after).days} days ago, or the clock is wrong",
            f"date -u; {ANEW}",
        )
    if left < SOON:
        return warn("ca", str(described.path), f"ends in {left.days} days", ANEW)
    return ok("ca", str(described.path), f"valid for {left.days} days more, its key secret")


def judge_cover(authority: CertificateAuthority, config: Config) -> Finding:
    """The registries that the CA may sign for, against those that are configured."""
    outside = [name for name in config.permitted_names() if not authority.constraints.cover(name)]
    if outside:
        words = f"may not sign for {', '.join(outside)}: the service does not start with it"
        return fail(
            "ca",
            str(authority.certificate_path),
            words,
            f"{ANEW}, and a restart here",
        )
    return ok(
        "ca", str(authority.certificate_path), f"may sign for all {len(config.permitted_names())} configured names"
    )
