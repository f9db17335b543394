"""The files that a set-up reads and writes: of this machine or below another root, and inside a container."""

import errno
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Protocol

from mitm_cache.errors import ConfigError
from mitm_cache.node.model import Files

MODE = 0o644
TIMEOUT = 60
"""Seconds for one command in a container."""


_GONE = re.compile("no such container|no container with name", re.IGNORECASE)
"""What docker and podman say of a container that is not there."""


class GoneError(ConfigError):
    """The container that files are in is not there any more."""


class Place(Files, Protocol):
    """Files that can be written too. Paths are absolute."""

    name: str

    def writable(self, path: str) -> None:
        """Raise ConfigError, naming the file, unless it can be written."""

    def write(self, path: str, text: str, like: Path | None = None) -> None:
        """Put a text in place of a file at once; mode, owner and times are those of `like`, or the old file's."""

    def remove(self, path: str) -> None:
        """Remove a file; none is good too."""

    def missing_folders(self, path: str) -> list[str]:
        """The folders above a file that are not there, the uppermost first."""

    def remove_folder(self, path: str) -> None:
        """Remove a folder if it is empty."""


def decode(content: bytes) -> str:
    """Bytes as text, reversibly."""
    return content.decode(errors="surrogateescape")


def encode(text: str) -> bytes:
    """The bytes again."""
    return text.encode(errors="surrogateescape")


class Local:
    """The files below a root; links are followed and stay links, but lead nowhere outside the root."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root.resolve(), ""

    def real(self, path: str) -> Path:
        """Where a path really is. Raises ConfigError where that is outside the root."""
        real = Path(os.path.realpath(self.root / path.lstrip("/")))
        if not real.is_relative_to(self.root):
            raise ConfigError(f"{path} is a link that leads out of {self.root}")
        return real

    def read(self, path: str) -> str | None:
        try:
            return decode(self.real(path).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error

    def names(self, folder: str) -> tuple[str, ...]:
        try:
            return tuple(sorted(os.listdir(self.real(folder))))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise ConfigError(f"{folder} cannot be read: {error.strerror}") from error

    def writable(self, path: str) -> None:
        folder = self.real(path).parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise ConfigError(f"{path} cannot be written: {folder} is not a folder")
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            raise ConfigError(f"{path} cannot be written: {folder} is on a file system that is read-only")
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise ConfigError(f"{path} cannot be written: run this as root (sudo)")

    def write(self, path: str, text: str, like: Path | None = None) -> None:
        real = self.real(path)
        try:
            real.parent.mkdir(parents=True, exist_ok=True)
            _replace(real, encode(text), like or (real if real.exists() else None))
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error

    def remove(self, path: str) -> None:
        try:
            self.real(path).unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"{path} cannot be removed: {error.strerror}") from error

    def missing_folders(self, path: str) -> list[str]:
        found: list[str] = []
        folder = Path(path).parent
        while not self.real(str(folder)).exists():
            found.append(str(folder))
            folder = folder.parent
        return found[::-1]

    def remove_folder(self, path: str) -> None:
        try:
            self.real(path).rmdir()
        except OSError:  # not empty, or gone: either is well
            return


def _replace(path: Path, content: bytes, like: Path | None) -> None:
    """Write beside and rename. A file that is a mount point, as in a container, can only be written in place."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if like is None:
            new.chmod(MODE)
        else:
            stat = like.stat()
            os.chown(new, stat.st_uid, stat.st_gid)
            shutil.copystat(like, new)  # extended attributes too, as SELinux' label
            if like == path:
                os.utime(new)
        try:
            new.replace(path)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            path.write_bytes(content)
            new.unlink()
    except BaseException:
        new.unlink(missing_ok=True)
        raise


class Container:
    """The files inside a container that runs, by `docker exec` or `podman exec`. Its node has a shell and coreutils."""

    def __init__(self, tool: str, name: str) -> None:
        self._tool, self.name = tool, name

    def _run(self, *command: str, content: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
        try:
            return subprocess.run(
                [self._tool, "exec", *(["-i"] if content is not None else []), self.name, *command],
                input=content,
                stdin=subprocess.DEVNULL if content is None else None,
                capture_output=True,
                timeout=TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"{self._tool} exec {self.name}: {error}") from error

    def _must(self, *command: str, content: bytes | None = None) -> bytes:
        done = self._run(*command, content=content)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
            raise ConfigError(f"{self._tool} exec {self.name} {' '.join(command)}: {words}")
        return done.stdout

    def _is(self, flag: str, path: str) -> bool:
        done = self._run("test", flag, path)
        words = done.stderr.decode(errors="replace").strip()
        # docker ends with 1 too where it reaches no daemon or no container; `test` says nothing.
        if done.returncode not in (0, 1) or (done.returncode == 1 and words):
            raise (GoneError if _GONE.search(words) else ConfigError)(f"{self._tool} exec {self.name}: {words}")
        return done.returncode == 0

    def read(self, path: str) -> str | None:
        return decode(self._must("cat", path)) if self._is("-f", path) else None

    def names(self, folder: str) -> tuple[str, ...]:
        return tuple(decode(self._must("ls", "-A", folder)).splitlines()) if self._is("-d", folder) else ()

    def writable(self, path: str) -> None:
        """Nothing to look at: the user in a kind node is root."""

    def write(self, path: str, text: str, like: Path | None = None) -> None:
        beside = f"{path}.mitm-cache"
        self._must("mkdir", "-p", str(Path(path).parent))
        if like is None and self._is("-f", path):
            self._must("cp", "-p", path, beside)
        self._must("cp", "/dev/stdin", beside, content=encode(text))
        self._must("mv", "-f", beside, path)

    def remove(self, path: str) -> None:
        self._must("rm", "-f", path)

    def missing_folders(self, path: str) -> list[str]:
        folders = [str(folder) for folder in Path(path).parents]
        return [folder for folder in folders[::-1] if not self._is("-d", folder)]

    def remove_folder(self, path: str) -> None:
        self._run("rmdir", path)  # stays if it is not empty


def kind_nodes(tool: str, cluster: str) -> list[str]:
    """The containers of a kind cluster, by the label that kind gives them. Raises ConfigError where there are none."""
    command = [tool, "ps", "--filter", f"label=io.x-k8s.kind.cluster={cluster}", "--format", "{{.Names}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{tool} ps: {error}") from error
    if done.returncode:
        raise ConfigError(f"{tool} ps: {done.stderr.strip()}")
    # The load balancer of a cluster with several control planes pulls nothing.
    names = [name for name in done.stdout.split() if not name.endswith("-external-load-balancer")]
    if not names:
        raise ConfigError(f"{tool} runs no node of a kind cluster {cluster!r}")
    return names
