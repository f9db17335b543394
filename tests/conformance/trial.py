"""The suite's runs: all of it against the cache's own registry, and the reading part through the cache, beside the same
without it."""

import json
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conformance.pushing import push
from tests.conformance.suite import BAD, PASS, Existing, Outcome, Verdict, run
from tests.fakes.registry import LyingUpstream
from tests.needs import find_tool
from tests.ports import free_port
from tests.serving import Process, process

NAME = "local.test"
OWN = f'[local]\nnames = ["127.0.0.1", "{NAME}"]\n'
"""By its address in clear text, and by a name with TLS."""
FULL = {
    # Not asked for unless a registry says that it does so.
    "OCI_API_BLOBS_UPLOAD_CANCEL": "true",
    "OCI_API_BLOBS_DIGEST_HEADER": "true",
    "OCI_API_MANIFESTS_DIGEST_HEADER": "true",
}
_CLEAR = {"OCI_TLS": "disabled"}
ABSENT = "not run"
PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The reading part at a registry itself, and through the cache by one way."""

    registry: str
    way: str
    direct: Outcome
    through: Outcome

    @property
    def differences(self) -> list[tuple[Verdict, Verdict]]:
        """Each test whose verdict is another one, as it is directly and through the cache."""
        before, after = _numbered(self.direct), _numbered(self.through)
        keys = dict.fromkeys((*before, *after))
        pairs = [(before.get(key, Verdict(key[0], ABSENT)), after.get(key, Verdict(key[0], ABSENT))) for key in keys]
        return [pair for pair in pairs if pair[0].status != pair[1].status]

    @property
    def worse(self) -> list[tuple[Verdict, Verdict]]:
        """Those where the cache does not do what the registry does: all but what fails there and passes here."""
        return [(one, other) for one, other in self.differences if one.status not in BAD or other.status != PASS]


def _numbered(outcome: Outcome) -> dict[tuple[str, int], Verdict]:
    """By name, and by turn: some tests are made more than once."""
    turns: Counter[str] = Counter()
    found = {}
    for each in outcome.verdicts:
        found[each.name, turns[each.name]] = each
        turns[each.name] += 1
    return found


@dataclass(frozen=True, slots=True)
class Trial:
    """Everything: whole runs by the way in, and comparisons."""

    whole: Mapping[str, Outcome]
    compared: tuple[Comparison, ...]

    @property
    def good(self) -> bool:
        """Whether nothing failed at our own registry, and no verdict is worse through the cache."""
        failed = any(each.failed for each in self.whole.values())
        return not failed and not any(each.worse for each in self.compared)


def run_trial(binary: Path) -> Trial:
    """Start what is needed, run the suite against it, and end it. Raises SuiteError, and FileNotFoundError where there
    is no docker-registry."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="mitm-cache-conformance-")))
        nobody = stack.enter_context(LyingUpstream(folder))
        own = stack.enter_context(process(folder / "own", nobody, more=OWN))
        whole = {
            "clear text, mirror listener": run(binary, folder / "clear", _at(own, "mirror"), _whole("clear") | _CLEAR),
            "TLS, by HTTPS_PROXY": run(binary, folder / "tls", NAME, _whole("tls") | _by_proxy(own)),
        }
        other = stack.enter_context(distribution(folder))
        read = {
            "own.test": ("mitm-cache's own registry", own.address("mirror")),
            "other.test": ("distribution (docker-registry)", other),
        }
        tables = "".join(f'[registries."{name}"]\nurl = "http://{h}:{p}"\n' for name, (_, (h, p)) in read.items())
        cache = stack.enter_context(process(folder / "cache", nobody, more=tables))
        compared = []
        for name, (title, (host, port)) in read.items():
            there = push(host, port, "team/app")
            direct = run(binary, folder / f"{name}-direct", f"{host}:{port}", there.settings() | _CLEAR)
            for way, outcome in _through(binary, folder / name, cache, name, there):
                compared.append(Comparison(title, way, direct, outcome))
        return Trial(whole, tuple(compared))


def _whole(name: str) -> dict[str, str]:
    return FULL | {"OCI_REPO1": f"{name}/one", "OCI_REPO2": f"{name}/two"}


def _through(binary: Path, folder: Path, cache: Process, name: str, there: Existing) -> Iterator[tuple[str, Outcome]]:
    for turn in ("not cached", "cached"):
        outcome = run(binary, folder / turn / "connect", name, there.settings() | _by_proxy(cache))
        yield f"HTTPS_PROXY, {turn}", outcome
    outcome = run(binary, folder / "mirror", _at(cache, "mirror"), there.settings(f"{name}/") | _CLEAR)
    yield "mirror, by path", outcome


def _at(service: Process, listener: str) -> str:
    host, port = service.address(listener)
    return f"{host}:{port}"


def _by_proxy(service: Process) -> dict[str, str]:
    """As a node with HTTPS_PROXY that trusts the CA."""
    return {
        "OCI_TLS": "enabled",
        "HTTPS_PROXY": f"http://{_at(service, 'connect')}",
        "NO_PROXY": "",
        "SSL_CERT_FILE": str(service.ca_file),
    }


@contextmanager
def distribution(folder: Path) -> Iterator[tuple[str, int]]:
    """Debian's docker-registry on a port of its own: its address. Raises FileNotFoundError."""
    program = find_tool("docker-registry")
    if program is None:
        raise FileNotFoundError("docker-registry is not installed: apt-get install docker-registry")
    host, port = "127.0.0.1", free_port()
    settings = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "distribution")}},
        "http": {"addr": f"{host}:{port}"},
    }
    path = folder / "distribution.yml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    with (folder / "distribution.log").open("wb") as log:
        popen = subprocess.Popen([program, "serve", str(path)], stdout=log, stderr=log)
    try:
        _wait_for(host, port, popen)
        yield host, port
    finally:
        popen.terminate()
        popen.wait(PATIENCE)


def _wait_for(host: str, port: int, popen: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            if popen.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
