"""A users file as a value: lines of `name:hash` as `htpasswd -B` writes them, comments and empty lines. No I/O."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import bcrypt

from mitm_cache.errors import ConfigError
from mitm_cache.parsing import networks

MAX_NAME = 255
"""Characters of a name."""
MAX_PASSWORD = 72
"""Bytes of a password; bcrypt would leave out what follows."""
COST = 12
"""Of new hashes: a quarter of a second on a processor of 2020, twice as much for each one more."""
MAX_COST = 15
"""Two seconds and more: whoever tries passwords would keep a processor busy."""
RESERVED = frozenset({"*", "anyone", "nobody"})
"""Words that mean something else where the configuration names users."""
_HASH = re.compile(r"\$2[aby]\$(0[4-9]|1[0-5])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_NUMBERS = re.compile(r"[0-9.]+")


@dataclass(frozen=True, slots=True)
class Table:
    """Hashes by name."""

    hashes: Mapping[str, str] = field(default_factory=dict, repr=False)
    cost: int = COST
    """The highest of its hashes."""

    def hash_for(self, name: str) -> str:
        """A user's hash; for a name that is no user's one that no password fits, and that takes as long to see."""
        return self.hashes.get(name) or f"$2b${self.cost:02d}${'.' * 53}"


def fits(hash_: str, password: bytes) -> bool:
    """Whether a password is the one of a hash. Takes up to seconds of a processor, which other threads may use."""
    right = bcrypt.checkpw(password[:MAX_PASSWORD], hash_.encode())
    return right and len(password) <= MAX_PASSWORD


def make_hash(password: str) -> str:
    """A new hash. Raises ConfigError for a password that bcrypt does not take as it is."""
    encoded = password.encode(errors="surrogateescape")
    if not encoded:
        raise ConfigError("a password is not empty")
    if len(encoded) > MAX_PASSWORD:
        raise ConfigError(f"a password has at most {MAX_PASSWORD} bytes; this one has {len(encoded)}")
    if any(character in password for character in "\r\n\0"):
        raise ConfigError("a password is one line, without a NUL")
    return bcrypt.hashpw(encoded, bcrypt.gensalt(COST)).decode()


def check_name(name: str) -> str:
    """The name. Raises ConfigError where it is none that a user can have."""
    if not name or len(name) > MAX_NAME or not name.isprintable() or ":" in name or name != name.strip():
        raise ConfigError(
            f"{name[:40]!r} is no user's name: 1 to {MAX_NAME} printable characters, no colon, no space at its ends"
        )
    if name.startswith("#"):
        raise ConfigError(f"{name!r} is no user's name: it would be a comment in the users file")
    if name in RESERVED or "/" in name or _NUMBERS.fullmatch(name) or _is_network(name):
        raise ConfigError(
            f"{name!r} is no user's name: where users are named, networks may be too; no slash, no address, no number, "
            f"and not loopback, private, any, {', '.join(sorted(RESERVED))}"
        )
    return name


def _is_network(name: str) -> bool:
    try:
        return bool(networks("", [name]))
    except ConfigError:
        return False


def parse(content: bytes, *, where: str) -> Table:
    """The table in a file's content. Raises ConfigError, which names the line and shows nothing of it."""
    hashes: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in _entries(_decode(content, where)):
        name, _, hash_ = line.partition(":")
        place = f"{where}, line {number}"
        if not _HASH.fullmatch(hash_.rstrip()):
            raise ConfigError(
                f"{place} is not NAME:HASH with a hash of bcrypt ($2a$, $2b$ or $2y$, cost 04 to {MAX_COST}): write it "
                "with 'mitm-cache user add NAME', or 'htpasswd -B'"
            )
        try:
            check_name(name)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error.message}") from None
        if name in lines:
            raise ConfigError(f"{place}: the name stands in line {lines[name]} already; keep one of them")
        lines[name], hashes[name] = number, hash_.rstrip()
    return Table(hashes, max((int(hash_[4:6]) for hash_ in hashes.values()), default=COST))


def replace(content: bytes, name: str, hash_: str | None, *, where: str) -> bytes:
    """The content with a user's line written anew, or without it for None; all other lines stay as they are."""
    text = _decode(content, where)
    mine = {number for number, line in _entries(text) if line.partition(":")[0] == name}
    kept: list[str] = []
    written = hash_ is None
    for number, line in enumerate(_lines(text), 1):
        if number not in mine:
            kept.append(line)
        elif not written:
            kept.append(f"{name}:{hash_}\n")
            written = True
    if not written:
        if kept and not kept[-1].endswith("\n"):
            kept[-1] += "\n"
        kept.append(f"{name}:{hash_}\n")
    return "".join(kept).encode()


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{where}, line {number} is not text in UTF-8") from None


def _entries(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are neither empty nor a comment, and their numbers."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.removesuffix("\r")


def _lines(text: str) -> list[str]:
    """Lines with their ends, where Unicode's other line ends are none."""
    return [line for line in re.split(r"(?<=\n)", text) if line]
