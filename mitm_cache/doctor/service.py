"""The service on this host, as its admin listener tells of it."""

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mitm_cache.config import HOSTS, LISTENERS, PORTS, Config
from mitm_cache.doctor import processes
from mitm_cache.doctor.finding import Finding, fail, ok, skip, warn
from mitm_cache.doctor.scene import STEP, Scene
from mitm_cache.parsing import Endpoint

LOG = "journalctl -u mitm-cache -n 50"
FEW_FILES = 4096
"""A pull holds up to a dozen sockets and files, and many nodes pull at once."""
LOCAL = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is listened on, and how it is asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """`running`: something answers at the admin listener; `trouble`: what it answers is not as it should be."""

    endpoint: Endpoint | None
    running: bool = False
    alive: bool = False
    trouble: str = ""
    checks: Mapping[str, str] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pid(self) -> int | None:
        value = self.document.get("pid")
        return value if isinstance(value, int) else None

    @property
    def blobs(self) -> int | None:
        """Bytes of the blobs, where the service has counted them."""
        held = self.document.get("blobs")
        return int(held["bytes"]) if isinstance(held, dict) and "bytes" in held else None

    def listeners(self, config: Config) -> dict[str, list[tuple[str, int]]]:
        """Addresses and ports of each listener: those that are bound, else those that would be."""
        bound: dict[str, list[tuple[str, int]]] = {name: [] for name in LISTENERS}
        told = self.document.get("listeners")
        for each in told if isinstance(told, list) else ():
            bound.setdefault(str(each["name"]), []).append((str(each["address"]), int(each["port"])))
        if told:
            return bound
        for name in LISTENERS:
            named = config.listen.get(name, (Endpoint(HOSTS.get(name, ""), PORTS[name][0]),))
            bound[name] = [(endpoint.host or "::", endpoint.port) for endpoint in named]
        return bound


def look(config: Config) -> Service:
    """Ask the admin listener for its pages."""
    service = Service(endpoint=None)
    for named in config.listen.get("admin", (Endpoint(HOSTS["admin"], PORTS["admin"][0]),)):
        endpoint = Endpoint(LOCAL.get(named.host, named.host), named.port)
        try:
            pages = {page: _get(endpoint, page) for page in ("/healthz", "/readyz", "/status")}
        except ConnectionRefusedError:
            service = Service(endpoint=endpoint)
            continue
        except (OSError, ValueError, http.client.HTTPException) as error:
            words = f"no answer within {STEP:g} s" if isinstance(error, TimeoutError) else str(error)
            return Service(endpoint=endpoint, running=True, trouble=words)
        checks = pages["/readyz"].get("checks", {})
        return Service(
            endpoint=endpoint,
            running=True,
            alive=pages["/healthz"].get("alive") is True,
            checks=checks if isinstance(checks, dict) else {},
            document=pages["/status"],
        )
    return service


def _get(endpoint: Endpoint, page: str) -> Mapping[str, Any]:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=STEP)
    try:
        connection.request("GET", page)
        document = json.loads(connection.getresponse().read(1 << 20))
    except (ValueError, RecursionError):
        raise ValueError("it is not mitm-cache that answers there") from None
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise ValueError("it is not mitm-cache that answers there")
    return document


def check_service(service: Service) -> Iterator[Finding]:
    """Whether it runs and is ready, by /healthz and /readyz."""
    if service.endpoint is None:
        yield skip("service", "listen.admin", "it is [], so nobody can be asked", 'listen.admin = ["127.0.0.1:9500"]')
    elif not service.running:
        cure = f"sudo systemctl start mitm-cache (or mitm-cache serve); {LOG}"
        yield fail("service", str(service.endpoint), "nobody answers: the service does not run", cure)
    elif service.trouble or not service.alive:
        words = service.trouble or "it is not mitm-cache that answers there"
        yield fail(
            "service",
            str(service.endpoint),
            words,
            f"ss -ltnp 'sport = :{service.endpoint.port}'; sudo systemctl restart mitm-cache",
        )
    else:
        wrong = {name: words for name, words in service.checks.items() if words != "ok"}
        for name, words in wrong.items():
            yield fail("service", str(service.endpoint), f"not ready: {name}: {words}", _CURES.get(name, LOG))
        if not wrong:
            yield ok("service", str(service.endpoint), f"runs and is ready (process {service.pid})")


_CURES = {
    "data_dir": "see the lines of data and disk: df, mount, chown -R mitm-cache: DATA_DIR",
    "listeners": f"{LOG}; sudo systemctl restart mitm-cache",
    "ca": "see the line of ca; timedatectl set-ntp true",
}


def check_files(scene: Scene, service: Service) -> Iterator[Finding]:
    """How many files the service may have open."""
    if service.pid is None:
        yield skip("files", "open files", "the service does not run", "see the line of service")
        return
    limit = processes.open_files_limit(scene.proc, service.pid)
    subject = f"process {service.pid}"
    if limit is None:
        yield skip("files", subject, "its limit cannot be read", "sudo mitm-cache doctor --host")
    elif limit < FEW_FILES:
        cure = "LimitNOFILE=65536 in its unit (systemctl edit mitm-cache), or ulimit -n 65536 before mitm-cache serve"
        yield warn("files", subject, f"it may open {limit} files: too few for many nodes at once", cure)
    else:
        yield ok("files", subject, f"it may open {limit} files")


def check_ports(scene: Scene, config: Config, service: Service) -> Iterator[Finding]:
    """Who holds the ports of the listeners."""
    held = processes.listeners(scene.proc)
    for name, ends in service.listeners(config).items():
        if not ends:
            yield skip("ports", f"listen.{name}", "it is []", f'listen.{name} = [":{PORTS[name][0]}"] to have it')
        for _, port in ends:
            yield judge_port(name, port, held.get(port), service)


def judge_port(name: str, port: int, holders: frozenset[str] | None, service: Service) -> Finding:
    """`holders`: programs that listen on the port, as far as they can be seen; None where nobody does."""
    subject = f"listen.{name} :{port}"
    usual = PORTS[name][0]
    ours = service.alive and any(each.get("port") == port for each in service.document.get("listeners", ()))
    if holders is None:
        if service.alive:
            return fail(
                "ports",
                subject,
                "nobody listens there, and the service runs",
                f"sudo systemctl restart mitm-cache; {LOG}",
            )
        return ok("ports", subject, "free")
    if ours and name == "tls" and port != usual and port == PORTS[name][1]:
        cure = "the socket units of docs/operations.md, or sysctl net.ipv4.ip_unprivileged_port_start=80, then restart"
        return warn("ports", subject, f"hosts entries on nodes need {usual}", cure)
    if ours:
        return ok("ports", subject, "the service listens there")
    if service.endpoint is None or any(holder.startswith("mitm-cache ") for holder in holders):
        return ok("ports", subject, f"{', '.join(sorted(holders))} listens there")
    if any(holder.endswith(" (1)") for holder in holders):
        return ok("ports", subject, "systemd holds it for the service")
    who = ", ".join(sorted(holders)) or "another program (sudo tells which)"
    cure = f"stop it (ss -ltnp 'sport = :{port}'), or another address in listen.{name}"
    return fail("ports", subject, f"{who} has it", cure)
