"""Docker's credential helpers: programs `docker-credential-X` that are asked for one server's credential.

The protocol is that of docker-credential-helpers: `get`, the server's name on stdin, a JSON document on stdout.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from mitm_cache.errors import ConfigError
from mitm_cache.registries import DOCKER_HUB, Registry
from mitm_cache.upstream.credentials import Kind, Login

HELPER_SECONDS = 10.0
"""A helper may ask its own service over the network."""
HUB_SERVER = "https://index.docker.io/v1/"
"""What Docker has called its Hub in credentials since its first version."""
IDENTITY_USER = "<token>"
"""The user of a secret that is an identity token."""


def server_of(registry: Registry) -> str:
    """What a registry is called in Docker's credentials."""
    return HUB_SERVER if registry.name == DOCKER_HUB.name else registry.name


@dataclass(frozen=True, slots=True)
class Helper:
    """The helper called `name`, asked about one server."""

    key: str
    name: str
    server: str
    environ: Mapping[str, str]

    @property
    def program(self) -> str:
        return f"docker-credential-{self.name}"

    def check(self) -> None:
        """Raise ConfigError unless the program is on PATH; it is not run."""
        self._find()

    def stamp(self) -> object:
        """A helper's word has no date."""
        return self.program

    def read(self) -> Login:
        """Run the program, without a shell. Raises ConfigError, which never shows what it said."""
        try:
            started = subprocess.Popen(
                [self._find(), "get"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=dict(self.environ),
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(f"{self.key}: {self.program} cannot be run: {error.strerror}") from error
        with started:
            try:
                said, _ = started.communicate(self.server.encode(), HELPER_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)  # with whatever it has started, which may hold the pipe open
                raise ConfigError(
                    f"{self.key}: {self.program} gave no answer about {self.server} in {HELPER_SECONDS:g} s"
                ) from None
        if started.returncode:
            raise ConfigError(
                f"{self.key}: {self.program} has nothing for {self.server} (exit status {started.returncode})"
            )
        return self._parse(said)

    def _find(self) -> str:
        program = shutil.which(self.program, path=self.environ.get("PATH", os.defpath))
        if program is None:
            raise ConfigError(f"{self.key}: there is no program {self.program} on PATH")
        return program

    def _parse(self, said: bytes) -> Login:
        try:
            fields = json.loads(said)
            user, secret = fields["Username"], fields["Secret"]
        except (ValueError, KeyError, TypeError, RecursionError):
            user, secret = None, None
        if not (isinstance(user, str) and isinstance(secret, str) and secret):
            raise ConfigError(f"{self.key}: {self.program} answered no JSON with Username and Secret")
        return Login(Kind.IDENTITY, "", secret) if user == IDENTITY_USER else Login(Kind.PASSWORD, user, secret)
