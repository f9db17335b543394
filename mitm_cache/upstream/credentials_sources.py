"""Where the cache's own credentials are: a file, the environment, Docker's `config.json`, a credential helper."""

import binascii
import json
import os
import stat
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mitm_cache.config import Config
from mitm_cache.errors import ConfigError
from mitm_cache.parsing import CredentialRule
from mitm_cache.registries import Registry
from mitm_cache.upstream.credentials import Credentials, Keeper, Kind, Login, Source, parse_secret
from mitm_cache.upstream.credentials_helper import Helper, server_of

MAX_SIZE = 1 << 20
"""Bytes of a file that holds credentials."""


def open_credentials(config: Config, environ: Mapping[str, str]) -> Credentials:
    """Every credential that the configuration speaks of. Raises ConfigError where one cannot be had; runs no helper."""
    keepers: dict[str, list[Keeper]] = {}
    for name, upstream in config.upstreams.items():
        registry = config.known.named(name)
        assert registry is not None
        for rule in upstream.credentials:
            source = _source(f"registries.{name}.credentials.{rule.source}", rule, registry, environ)
            source.check()
            keepers.setdefault(name, []).append(Keeper(rule.repository, source))
    return Credentials(keepers)


def _source(key: str, rule: CredentialRule, registry: Registry, environ: Mapping[str, str]) -> Source:
    match rule.source:
        case "file":
            return SecretFile(key, Path(rule.place))
        case "env":
            return Variable(key, rule.place, environ)
        case "helper":
            return Helper(key, rule.place, server_of(registry), environ)
        case _:
            return DockerConfig(key, Path(rule.place), registry, environ)


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A file with `user:password` or a token, which nobody but its owner may read."""

    key: str
    path: Path

    def check(self) -> None:
        self.read()

    def stamp(self) -> object:
        """Another file, or another content of it."""
        return _stamp(self.path)

    def read(self) -> Login:
        """Raises ConfigError."""
        try:
            text = _read_private(self.key, self.path).decode()
        except UnicodeDecodeError:
            text = ""
        return parse_secret(f"{self.key}: {self.path}", text)


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the environment with `user:password` or a token."""

    key: str
    name: str
    environ: Mapping[str, str]

    def check(self) -> None:
        self.read()

    def stamp(self) -> object:
        """The environment of a process stays as it is."""
        return self.name

    def read(self) -> Login:
        """Raises ConfigError."""
        if self.name not in self.environ:
            raise ConfigError(f"{self.key}: there is no variable {self.name} in the environment")
        return parse_secret(f"{self.key}: {self.name}", self.environ[self.name])


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """Docker's `config.json` as `docker login` leaves it; it may send us on to a credential helper."""

    key: str
    path: Path
    registry: Registry
    environ: Mapping[str, str]

    def check(self) -> None:
        found = self._look_up()
        if isinstance(found, Helper):
            found.check()

    def stamp(self) -> object:
        """Another file, or another content of it."""
        return _stamp(self.path)

    def read(self) -> Login:
        """Raises ConfigError. May run a helper."""
        found = self._look_up()
        return found.read() if isinstance(found, Helper) else found

    def _look_up(self) -> Helper | Login:
        """In Docker's order: the registry's own helper, its entry, the helper for all."""
        try:
            document = json.loads(_read_private(self.key, self.path))
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise ConfigError(f"{self.key}: {self.path} is not JSON as docker login writes it")
        server, helper = self._entry(document.get("credHelpers"))
        if isinstance(helper, str):
            return Helper(self.key, self._helper(helper), server, self.environ)
        server, entry = self._entry(document.get("auths"))
        login = self._login(entry)
        if login is not None:
            return login
        store = document.get("credsStore")
        if isinstance(store, str) and store:
            return Helper(self.key, self._helper(store), server, self.environ)
        raise ConfigError(
            f"{self.key}: {self.path} has no credential for {server}: docker login "
            f"{'' if server.startswith('https:') else server}".rstrip()
        )

    def _helper(self, name: str) -> str:
        if "/" in name or "\0" in name:
            raise ConfigError(f"{self.key}: {self.path} names a helper {name[:40]!r}, which is not a plain name")
        return name

    def _entry(self, table: Any) -> tuple[str, Any]:
        """What a table has for this registry, and the name by which it has it."""
        for server, entry in table.items() if isinstance(table, dict) else ():
            host, _, rest = server.removeprefix("https://").removeprefix("http://").partition("/")
            if host.lower() in self.registry.names and rest.strip("/") in ("", "v1", "v2"):
                return server, entry
        return server_of(self.registry), None

    def _login(self, entry: Any) -> Login | None:
        if not isinstance(entry, dict):
            return None
        for field, kind in (("registrytoken", Kind.BEARER), ("identitytoken", Kind.IDENTITY)):
            token = entry.get(field)
            if isinstance(token, str) and token:
                if not (token.isascii() and token.isprintable()):
                    raise ConfigError(f"{self.key}: {self.path} has an unprintable {field}")
                return Login(kind, "", token)
        auth = entry.get("auth")
        if not isinstance(auth, str) or not auth:
            return None
        try:
            login = parse_secret(self.key, b64decode(auth, validate=True).decode().rstrip("\0"))
        except (binascii.Error, ValueError, ConfigError):
            login = None
        if login is None or login.kind is not Kind.PASSWORD:
            raise ConfigError(f"{self.key}: {self.path} has an auth that is not the base64 of user:password") from None
        return login


def _read_private(key: str, path: Path) -> bytes:
    """A file's bytes. Raises ConfigError, also where others than its owner may read it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(f"{key}: {path} has mode {mode:04o}: only its owner may read it (chmod 600 {path})")
            return file.read(MAX_SIZE)
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}") from error


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
