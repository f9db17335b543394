"""The set-up script as it is served: `setup.sh` with this cache's facts in it, and the line that runs it."""

import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files

from mitm_cache.parsing import is_address
from mitm_cache.registries import DOCKER_HUB, Known
from mitm_cache.welcome.facts import Facts, Place
from mitm_cache.welcome.names import rows

PATH = "/setup.sh"
WAYS = ("hosts", "mirror")
_BLANK = re.compile(r"@([A-Z_]+)@")
_PLAIN = re.compile(r"[A-Za-z0-9 .:/_+=\n\[\]-]*")
"""What may stand between single quotes in the shell, a certificate included, and means nothing there."""


class Script:
    """One cache's script: the same bytes for as long as its CA, names, registries and places are the same."""

    __slots__ = ("_facts", "content", "sha256")

    def __init__(self, facts: Facts) -> None:
        """Raises ValueError where a fact holds a character that has no place in one."""
        self._facts = facts
        self.content = _fill(_template(), _blanks(facts)).encode()
        self.sha256 = hashlib.sha256(self.content).hexdigest()

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways that this cache's listeners allow, the better first."""
        allowed = {"hosts": self._facts.for_names, "mirror": self._facts.places.get("mirror")}
        return tuple(way for way in WAYS if allowed[way])

    @property
    def fetch(self) -> str:
        """A shell command that brings this script, and nothing else, into the file `$f`; "" where it cannot be fetched.

        The file is one that nobody else on the node can write.
        """
        if not self._facts.base:
            return ""
        url = f"{self._facts.base}{PATH}"
        return (
            f'f=$(mktemp) && {{ curl -fsS {url} || wget -qO- {url}; }} >"$f" && '
            f'echo "{self.sha256}  $f" | sha256sum -c -'
        )

    def line(self, way: str) -> str:
        """What to paste on a node: it runs this script with this CA, or nothing. "" where it cannot be fetched."""
        if not self.fetch:
            return ""
        return f'{self.fetch} && sudo sh "$f" {way} --fingerprint {self._facts.fingerprint} && rm "$f"'


def _template() -> str:
    return files("mitm_cache.welcome").joinpath("setup.sh").read_text("ascii")


def _blanks(facts: Facts) -> Mapping[str, str]:
    tls, mirror = facts.places.get("tls"), facts.places.get("mirror")
    return {
        "VERSION": facts.version,
        "FINGERPRINT": facts.fingerprint,
        "CERTIFICATE": facts.certificate.decode("ascii").rstrip("\n"),
        "NAMES": "\n".join(" ".join(row) for row in rows(facts.known, facts.names)),
        "MIRRORED": "\n".join(_mirrored(facts.known)),
        "TLS_HOST": tls.host if tls else "",
        "TLS_PORT": _port(tls),
        "MIRROR_HOST": mirror.host if mirror else "",
        "MIRROR_PORT": _port(mirror),
    }


def _port(place: Place | None) -> str:
    return str(place.port) if place else ""


def _mirrored(known: Known) -> list[str]:
    """The names that stand before a path at the mirror: podman's image names hold no port there, and it knows Docker
    Hub by one name."""
    names = [name for registry in known for name in (registry.hosts if registry.name != DOCKER_HUB.name else ())]
    return [DOCKER_HUB.name, *(name for name in names if ":" not in name and not is_address(name))]


def _fill(template: str, blanks: Mapping[str, str]) -> str:
    for name, value in blanks.items():
        if not _PLAIN.fullmatch(value):
            raise ValueError(f"{name} of the set-up script cannot be {value!r}")
    return _BLANK.sub(lambda match: blanks[match[1]], template)
