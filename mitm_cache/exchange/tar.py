"""The heads of a tar archive, written by anybody: read one by one, believing nothing that they say.

Nothing is ever unpacked to a path that an archive names. What has no business in an archive of images is refused.
"""

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol

from mitm_cache.errors import ClientError

CHUNK = 1 << 20
MAX_MEMBERS = 500_000
MAX_EXTENSION = 64 << 10
"""Bytes of a long name, or of a PAX header."""
_BLOCK = tarfile.BLOCKSIZE
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_ENCODING = ("utf-8", "surrogateescape")
_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
}


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive: `size` bytes from `offset`, or the name of another one, `target`."""

    name: str
    offset: int
    size: int
    target: str = ""


class Tape(Protocol):
    """An archive's bytes, of which those before `position` have passed. Its methods raise OSError."""

    position: int

    def read(self, size: int) -> bytes:
        """The next so many bytes; fewer only at the end."""

    def pass_to(self, position: int) -> bool:
        """Go on from there; False where the end comes before."""


class FileTape:
    """Of a file that can be read anywhere."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._total = os.fstat(fd).st_size
        self.position = 0

    def read(self, size: int) -> bytes:
        data = os.pread(self._fd, size, self.position)
        self.position += len(data)
        return data

    def pass_to(self, position: int) -> bool:
        self.position = position
        return position <= self._total


class StreamTape:
    """Of what comes once, and in its order only."""

    def __init__(self, file: BinaryIO, tell: Callable[[int], None] = lambda _: None) -> None:
        """`tell` is given the bytes that have passed, again and again."""
        self._file = file
        self._tell = tell
        self.position = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.position += len(data)
        self._tell(len(data))
        return data

    def pass_to(self, position: int) -> bool:
        while self.position < position and self.read(min(CHUNK, position - self.position)):
            pass
        return self.position >= position

    def content(self, member: "Member") -> Iterator[bytes]:
        """What a member holds, once, a MiB at a time. Raises ClientError where it is cut off."""
        end = member.offset + member.size
        while self.position < end:
            chunk = self.read(min(CHUNK, end - self.position))
            if not chunk:
                raise ClientError(f"the archive is cut off in {_shown(member.name)}")
            yield chunk

    def drain(self) -> None:
        """Read on to the end: who writes it should not find nobody there."""
        while self.read(CHUNK):
            pass


def read_members(tape: Tape) -> Iterator[Member]:
    """The files and links of an archive, in its order. Raises ClientError where it is not sound, or cut off.

    A member's content has not passed yet when it is given.
    """
    count = 0
    longer: dict[str, str] = {}
    while (info := _head(tape)) is not None:
        offset, size = tape.position, _size(info, longer)
        count += 1
        if count > MAX_MEMBERS:
            raise ClientError(f"the archive has more than {MAX_MEMBERS:,} members")
        if info.type in (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            if size > MAX_EXTENSION:
                raise ClientError(f"the archive has a header of {size:,} bytes; {MAX_EXTENSION:,} are allowed")
            content = tape.read(size)
            if len(content) == size:
                longer |= _extension(info.type, content)
        else:
            yield from _member(info, offset, size, longer)
            longer = {}
        if not tape.pass_to(offset + size):
            raise ClientError(f"the archive is cut off in {_shown(info.name)}")
        tape.pass_to(offset + -(-size // _BLOCK) * _BLOCK)


def _member(info: tarfile.TarInfo, offset: int, size: int, longer: dict[str, str]) -> Iterator[Member]:
    """A file or a link; nothing where it is a folder."""
    name = _clean(longer.get("path", info.name))
    if info.type in _PLAIN:
        yield Member(name, offset, size)
    elif info.type in _LINKS:
        beside = PurePosixPath(name).parent if info.type == tarfile.SYMTYPE else PurePosixPath()
        yield Member(name, offset, 0, _clean(longer.get("linkpath", info.linkname), str(beside)))
    elif info.type != tarfile.DIRTYPE:
        raise ClientError(f"the archive holds {_shown(name)}, which is a {_kind(info.type)}: it is refused")


def _head(tape: Tape) -> tarfile.TarInfo | None:
    """The next head; None at the archive's end."""
    position, block = tape.position, tape.read(_BLOCK)
    for start, (name, tool) in _PACKED.items() if not position else ():
        if block.startswith(start):
            raise ClientError(f"it is compressed by {name}; unpack it first: {tool}")
    if len(block) < _BLOCK:
        raise ClientError("the archive is cut off: it has no end")
    if not block.strip(b"\0"):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, *_ENCODING)
    except tarfile.HeaderError as error:
        raise ClientError(f"it is no tar archive, or a damaged one: {error} at byte {position:,}") from None


def _size(info: tarfile.TarInfo, longer: dict[str, str]) -> int:
    text = longer.get("size")
    if text is not None and not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ClientError(f"the archive gives {text[:20]!r} as the size of {_shown(info.name)}")
    size = int(text) if text is not None and info.type in _PLAIN else info.size
    if size < 0:
        raise ClientError(f"the archive gives {size} as the size of {_shown(info.name)}")
    # A link of some old archives has the size of what it leads to, and no bytes of its own.
    return 0 if info.type in (*_LINKS, tarfile.DIRTYPE) else size


def _extension(kind: bytes, content: bytes) -> dict[str, str]:
    """What a header says of the member that follows it."""
    if kind == tarfile.XGLTYPE:
        return {}  # about all members: nothing of it matters here
    if kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        text = content.partition(b"\0")[0].decode(*_ENCODING)
        return {"path" if kind == tarfile.GNUTYPE_LONGNAME else "linkpath": text}
    found = {}
    while content:
        length, space, _ = content.partition(b" ")
        size = int(length) if space and length.isdigit() and len(length) < 7 else 0
        record = content[len(length) + 1 : size]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or size > len(content):
            raise ClientError("the archive has a damaged PAX header")
        if key.startswith(b"GNU.sparse"):
            raise ClientError("the archive holds a sparse file: it is refused")
        if key in (b"path", b"linkpath", b"size"):
            found[key.decode()] = value[:-1].decode(*_ENCODING)
        content = content[size:]
    return found


def _clean(name: str, beside: str = "") -> str:
    """A name without its detours. Raises ClientError where it leads out of the archive."""
    parts = list(PurePosixPath(beside).parts)
    for part in name.split("/"):
        if part == ".." and not parts:
            raise ClientError(f"the archive names {_shown(name)}, which is outside of it: it is refused")
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    if name.startswith("/") or "\0" in name:
        raise ClientError(f"the archive names {_shown(name)}, which is outside of it: it is refused")
    return "/".join(parts)


def _kind(kind: bytes) -> str:
    names = {tarfile.CHRTYPE: "device", tarfile.BLKTYPE: "device", tarfile.FIFOTYPE: "pipe", b"S": "sparse file"}
    return names.get(kind, f"member of the unknown type {kind!r}")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:80]}…")
