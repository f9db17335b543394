"""The heads of a tar archive, written by anybody: read one by one, believing nothing that they say.

Nothing is ever unpacked to a path that an archive names. What has no business in an archive of images is refused.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from mitm_cache.errors import ClientError

MAX_MEMBERS = 500_000
MAX_EXTENSION = 64 << 10
"""Bytes of a long name, or of a PAX header."""
_BLOCK = tarfile.BLOCKSIZE
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_ENCODING = ("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive: `size` bytes from `offset`, or the name of another one, `target`."""

    name: str
    offset: int
    size: int
    target: str = ""


def read_members(fd: int) -> Iterator[Member]:
    """The files and links of an archive, in its order. Raises ClientError where it is not sound, or cut off."""
    total = os.fstat(fd).st_size
    position, count = 0, 0
    longer: dict[str, str] = {}
    while (info := _head(fd, position)) is not None:
        offset, size = position + _BLOCK, _size(info, longer)
        position = offset + -(-size // _BLOCK) * _BLOCK
        if offset + size > total:
            raise ClientError(f"the archive is cut off in {_shown(info.name)}")
        count += 1
        if count > MAX_MEMBERS:
            raise ClientError(f"the archive has more than {MAX_MEMBERS:,} members")
        if info.type in (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            if size > MAX_EXTENSION:
                raise ClientError(f"the archive has a header of {size:,} bytes; {MAX_EXTENSION:,} are allowed")
            longer |= _extension(info.type, os.pread(fd, size, offset))
            continue
        name = _clean(longer.get("path", info.name))
        target = longer.get("linkpath", info.linkname)
        longer = {}
        if info.type in _PLAIN:
            yield Member(name, offset, size)
        elif info.type in _LINKS:
            beside = PurePosixPath(name).parent if info.type == tarfile.SYMTYPE else PurePosixPath()
            yield Member(name, offset, 0, _clean(target, str(beside)))
        elif info.type != tarfile.DIRTYPE:
            raise ClientError(f"the archive holds {_shown(name)}, which is a {_kind(info.type)}: it is refused")


def _head(fd: int, position: int) -> tarfile.TarInfo | None:
    """The head at a position in bytes; None at the archive's end."""
    block = os.pread(fd, _BLOCK, position)
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
