"""The way out of the cache host, by the product's own router and client: names, loops, proxies, registries, time."""

import tempfile
import threading
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from mitm_cache.config import Config
from mitm_cache.doctor.finding import Finding, fail, ok, skip, warn
from mitm_cache.doctor.scene import SECONDS, Scene
from mitm_cache.doctor.service import Service
from mitm_cache.errors import LoopError, StoppingError, UpstreamError
from mitm_cache.registries import Registry
from mitm_cache.upstream import rules
from mitm_cache.upstream.client import Bounds, Call, Client
from mitm_cache.upstream.curl import Answer, Transport
from mitm_cache.upstream.route import Router
from mitm_cache.upstream.tokens import Tokens
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.redirect import Origin

PATIENCE = SECONDS - 1.0
"""Seconds for a registry; libcurl looks at the clock about once a second."""
TOLERATED = 300.0
LOOP = "upstream.resolvers"


class Upstream:
    """The upstream leg as the service has it. Its bundle of certificates is written to `folder`."""

    def __init__(self, scene: Scene, config: Config, service: Service, folder: Path) -> None:
        """Raises ConfigError and StoreError, as the start of the service does."""
        self.config = config
        ends = [end for ends in service.listeners(config).values() for end in ends]
        self.router: Router = rules.router(config, folder=folder, listeners=ends, environ=scene.environ)
        self._bases = rules.bases(config)

    def origin(self, registry: Registry) -> Origin:
        """Where a registry is."""
        return Origin.of(self._bases.get(registry.name) or f"https://{registry.host}")

    def ping(self, registry: Registry) -> Answer:
        """`/v2/` of a registry, within `PATIENCE`. Raises UpstreamError."""
        deadline = time.monotonic() + PATIENCE
        transport = Transport(agent=f"mitm-cache/{version('mitm-cache')}", stopped=lambda: time.monotonic() > deadline)
        try:
            client = Client(
                transport=transport,
                router=self.router,
                tokens=Tokens(),
                bases=self._bases,
                via="mitm-cache-doctor",
                bounds=Bounds(
                    allow_http=self.config.allow_http,
                    allow_private=self.config.allow_private,
                ),
            )
            return client.exchange(
                Call(
                    registry=registry,
                    repository=None,
                    method="GET",
                    target="/v2/",
                    headers=Headers(),
                    credential=None,
                    follow=False,
                )
            )
        finally:
            transport.close()


class Shared:
    """One `Upstream` for all checks of it, made by the first that asks; a failure is each one's finding."""

    def __init__(self, scene: Scene, config: Config, service: Service) -> None:
        self._make = partial(Upstream, scene, config, service)
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="mitm-cache-doctor-", ignore_cleanup_errors=True)
        self._made: Upstream | None = None

    def get(self) -> Upstream:
        """Raises ConfigError and StoreError."""
        with self._lock:
            if self._made is None:
                self._made = self._make(Path(self._folder.name))
            return self._made

    def close(self) -> None:
        """Remove the bundle."""
        self._folder.cleanup()


def check_registry(scene: Scene, shared: Shared, registry: Registry) -> Iterator[Finding]:
    """Whether the way to a registry is no loop, and leads to it."""
    upstream = shared.get()
    if upstream.config.is_offline(registry.name):
        cure = f'offline = false in [cache] and [registries."{registry.name}"]'
        yield skip("upstream", registry.name, "it is offline by configuration, and asked for nothing", cure)
        return
    origin = upstream.origin(registry)
    try:
        route = upstream.router.find(origin, registry.name)
    except LoopError as error:
        yield fail("loop", registry.name, error.message, _loop_cure(registry))
        return
    except UpstreamError as error:
        yield from _unreachable(scene, registry, error)
        return
    way = f"by the proxy {route.proxy}" if route.proxy else ", ".join(route.addresses[:2])
    yield ok("loop", registry.name, f"{origin.host} does not lead back here ({way})")
    try:
        answer = upstream.ping(registry)
    except LoopError as error:
        yield fail("loop", registry.name, error.message, _loop_cure(registry))
    except UpstreamError as error:
        yield from _unreachable(scene, registry, error)
    else:
        yield judge_answer(registry, answer.status, way)
        yield judge_time(registry, answer.headers.get("date"), scene.now())


def _loop_cure(registry: Registry) -> str:
    return f'upstream.resolvers = ["SERVER that knows it"], or registries."{registry.name}".resolve = ["ITS ADDRESS"]'


def judge_answer(registry: Registry, status: int, way: str) -> Finding:
    """A registry answers its root with 200, or with 401 to strangers."""
    if status in (200, 401):
        return ok("upstream", registry.name, f"/v2/ answers {status} ({way})")
    if 300 <= status < 400:
        return ok("upstream", registry.name, f"/v2/ is elsewhere: {status} ({way})")
    cure = f'curl -v https://{registry.host}/v2/ from here; registries."{registry.name}".url, or upstream.proxy'
    return (warn if status == 429 else fail)("upstream", registry.name, f"/v2/ answers {status} ({way})", cure)


def _unreachable(scene: Scene, registry: Registry, error: UpstreamError) -> Iterator[Finding]:
    """A registry that was asked for must be reached; of the others a machine without internet has none."""
    message = error.message
    if isinstance(error, StoppingError):
        message = f"{registry.host} did not answer within {PATIENCE:g} s"
    if "TLS handshake" in message:
        yield fail(
            "upstream", registry.name, message, f'upstream.ca_file = "FILE", or registries."{registry.name}".ca_file'
        )
    elif "cannot be resolved" in message:
        cure = f'upstream.resolvers = ["SERVER"], or registries."{registry.name}".resolve; or upstream.proxy'
        yield (fail if registry.name in scene.asked else warn)("upstream", registry.name, message, cure)
    else:
        cure = f"curl -v https://{registry.host}/v2/ from here; the firewall; upstream.proxy where one leads out"
        hard = registry.name in scene.asked or "proxy" in message
        yield (fail if hard else warn)("upstream", registry.name, message, cure)


def judge_time(registry: Registry, date: str | None, now: float) -> Finding:
    """The clock of this host against an answer's Date: certificates are made by it."""
    try:
        ahead = now - parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return skip("time", registry.name, "its answer has no Date", "timedatectl")
    if abs(ahead) > TOLERATED:
        words = f"the clock here is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} {registry.host}'s"
        return fail(
            "time", registry.name, words, "timedatectl set-ntp true (or chronyc makestep), then restart mitm-cache"
        )
    return ok("time", registry.name, "the clocks of this host and of the registry agree")
