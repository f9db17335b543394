"""A mirror as a client's own file names it, and the reader of such files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mitm_cache.doctor.finding import Finding, fail
from mitm_cache.doctor.scene import Scene, Wanted
from mitm_cache.errors import ConfigError
from mitm_cache.node.tomls import Table, read_toml

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """Where a client asks in a registry's stead, by `source`: `url` is of a manifest, or of the API's root.

    `insecure`: the client does not verify TLS; `roots` are files of CAs that it believes besides the system's.
    """

    client: str
    source: Path
    wanted: Wanted
    url: str
    insecure: bool = False
    roots: tuple[Path, ...] = ()

    @property
    def host(self) -> str:
        """The name or the address that is asked."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port that is asked, the scheme's own where the file has none."""
        parts = urlsplit(self.url)
        return parts.port or PORTS[parts.scheme]


def is_url(url: str) -> bool:
    """Whether a URL can be asked: HTTP or HTTPS, with a host and a port that is one."""
    try:
        parts = urlsplit(url)
        return parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:
        return False


class Files:
    """Reads files of the machine. What is there and cannot be read is kept in `findings`."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.findings: list[Finding] = []
        self._tables: dict[Path, Table] = {}

    def text(self, path: Path) -> str | None:
        """The text of a file, or None where there is none to be read."""
        try:
            return path.read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            words = "it may not be read by this user"
            self.findings.append(fail("cache", str(path), words, "sudo mitm-cache doctor"))
        except (OSError, ValueError) as error:
            words = f"it cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"
            self.findings.append(fail("cache", str(path), words, "put it right, or take it away"))
        return None

    def toml(self, path: Path) -> Table:
        """The tables of a file; none where it cannot be read."""
        if path not in self._tables:
            self._tables[path] = {}
            try:
                self._tables[path] = read_toml(str(path), self.text(path))
            except ConfigError as error:
                self.broken(path, error)
        return self._tables[path]

    def broken(self, path: Path, error: ConfigError) -> None:
        """Keep that a file is not what it should be."""
        cure = "put it right: its client pulls nothing by it as it is"
        self.findings.append(fail("cache", str(path), error.message.removeprefix(f"{path} "), cure))

    def certificates(self, host: str, *folders: str) -> tuple[Path, ...]:
        """The CAs that clients believe for `host:port`, by their own folders in /etc."""
        places = [self.scene.path(f"/etc/{folder}/certs.d/{host}") for folder in folders]
        return tuple(file for place in places for file in sorted(place.glob("*.crt")))


def texts(value: Any) -> list[str]:
    """The texts of a list; none of what is none."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
