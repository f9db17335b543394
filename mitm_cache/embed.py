"""Joining our classes to a stock mitmproxy: each script of `addons/` is one job, and all jobs of one mitmproxy share
the configuration, the journal and the cache."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet

from mitmproxy import http
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.exceptions import OptionsError
from mitmproxy.master import Master
from mitmproxy.proxy.mode_specs import ProxyMode

from mitm_cache.cache.layout import open_layout
from mitm_cache.config import Config, load
from mitm_cache.core import Answers, Core
from mitm_cache.errors import ConfigError, MitmCacheError
from mitm_cache.journal import Journal
from mitm_cache.proxy.deliver import Pump
from mitm_cache.proxy.door import Door
from mitm_cache.proxy.guest import Arrivals, GuestServe, Seat
from mitm_cache.proxy.logins import Logins
from mitm_cache.proxy.receive import Receive
from mitm_cache.proxy.upgrade import Crossings
from mitm_cache.tasks import Attempts
from mitm_cache.users import OwnTokens, Users
from mitm_cache.wire.message import Handler

logger = logging.getLogger(__name__)

FILE_OPTION = "mitm_cache_config"
DATA_OPTION = "mitm_cache_data_dir"
OPTIONS = {
    FILE_OPTION: "Configuration file of mitm-cache, instead of /etc/mitm-cache/config.toml.",
    DATA_OPTION: "Where mitm-cache keeps the cache, and by default its CA.",
}


class Shared:
    """What the jobs of one mitmproxy have in common; opened when it is first needed, closed with the last job."""

    _all: ClassVar[dict[Master, "Shared"]] = {}

    def __init__(self, master: Master) -> None:
        self.master = master
        self.jobs: list[Job] = []
        self.journal = Journal()
        self.arrivals = Arrivals()
        self.accounted: WeakSet[http.HTTPFlow] = WeakSet()
        """Flows of which the journal has been told already."""
        self._read: tuple[str, str] | None = None
        self._config: Config | None = None
        self._tasks = Attempts()
        self._core: Core | None = None
        self._door: Door | None = None
        self._users: Users | None = None
        self._tokens: OwnTokens | None = None

    @classmethod
    def of(cls, master: Master) -> "Shared":
        """The one of this mitmproxy."""
        if master not in cls._all:
            cls._all[master] = cls(master)
        return cls._all[master]

    @property
    def config(self) -> Config:
        """What the options lead to. Raises ConfigError."""
        options = self.master.options
        asked = (str(getattr(options, FILE_OPTION)), str(getattr(options, DATA_OPTION)))
        if self._config is None or asked != self._read:
            if self._core is not None:
                raise ConfigError(f"{FILE_OPTION} and {DATA_OPTION} are read at the start; restart to change them")
            file, data_dir = asked
            flags = {"data_dir": data_dir} if data_dir else {}
            self._config = load(file=Path(file).expanduser() if file else None, flags=flags)
            self._read = asked
        return self._config

    @property
    def core(self) -> Core:
        """The cache and the upstream leg. Raises MitmCacheError."""
        if self._core is None:
            config = self.config
            layout = open_layout(config.data_dir)
            if config.users_file is not None:
                self._users = Users.open(config.users_file)
                if config.local.names:
                    self._tokens = OwnTokens.open(layout.token_key, self._users, issuer=layout.identity)
            self._core = Core(
                config,
                layout,
                listeners=list(self._listeners()),
                start=self._tasks.start,
                journal=self.journal,
                tokens=self._tokens,
            )
            self._tasks.start(self._core.sweep_regularly())
        return self._core

    @property
    def door(self) -> Door:
        """The one door of all flows that we answer. Raises MitmCacheError."""
        if self._door is None:
            core = self.core
            self._door = Door(
                known=self.config.known,
                journal=self.journal,
                via=core.via,
                ways=self.arrivals.ways,
                logins=Logins(self._users, self._tokens),
            )
        return self._door

    def accounts(self, flow: http.HTTPFlow) -> bool:
        """Whether the journal is told of a flow by somebody else than the access log."""
        return flow in self.accounted or (self._door is not None and flow in self._door.pending)

    def proxyserver(self) -> Proxyserver:
        """mitmproxy's own."""
        proxyserver = self.master.addons.get("proxyserver")
        assert isinstance(proxyserver, Proxyserver)
        return proxyserver

    def _listeners(self) -> Iterator[tuple[str, int]]:
        for address in self.proxyserver().listen_addrs():
            yield address[0], address[1]
        options = self.master.options
        for mode in map(ProxyMode.parse, options.mode):
            port = mode.listen_port(options.listen_port)
            if port:
                host = mode.listen_host(options.listen_host)
                yield from [(host, port)] if host else [("0.0.0.0", port), ("::", port)]  # noqa: S104 - what mitmproxy does

    def leave(self, job: "Job") -> None:
        """A job has ended."""
        if job in self.jobs:
            self.jobs.remove(job)
        if not self.jobs:
            self._all.pop(self.master, None)
            core, self._core, self._door = self._core, None, None
            if core is not None:
                core.close()
            users, self._users, self._tokens = self._users, None, None
            if users is not None:
                users.close()
            self._tasks.cancel()


class Job:
    """The addon of one script: its options, and what it shares with the others."""

    name = ""
    shared: Shared

    def __init__(self) -> None:
        self.addons: list[object] = []
        """Classes of ours that mitmproxy calls by itself."""

    def load(self, loader: Loader) -> None:
        """Say which options there are."""
        for option, explanation in OPTIONS.items():
            loader.add_option(option, str, "", explanation)
        self.shared = Shared.of(loader.master)
        self.shared.jobs.append(self)

    def configure(self, updated: set[str]) -> None:
        """Read the configuration. Raises OptionsError."""
        if OPTIONS.keys() & updated:
            try:
                _ = self.shared.config
            except ConfigError as error:
                raise OptionsError(error.message) from None

    def running(self) -> None:
        """Begin; what is wrong is said in one line, which ends a mitmproxy that is starting."""
        try:
            self.start()
        except MitmCacheError as error:
            logger.error("%s: %s", self.name, error.message)

    def start(self) -> None:
        """Open what the job needs. Raises MitmCacheError."""

    def add(self, *addons: object) -> None:
        """Have mitmproxy call these too, where this script stands among the others."""
        self.addons += [self.shared.master.addons.register(addon) for addon in addons]

    def done(self) -> None:
        """End."""
        self.shared.leave(self)


class Answering(Job):
    """A job that answers for registries, in mitmproxy's place. One at a time: the first by `rank`, then by order."""

    rank = 0
    _receive: Receive | None = None

    def done(self) -> None:
        """End."""
        super().done()
        if self._receive is not None:
            self._receive.close()

    def start(self) -> None:
        """Take the seat, unless another job has it."""
        rivals = [job for job in self.shared.jobs if isinstance(job, Answering)]
        if min(rivals, key=lambda job: job.rank) is not self or any(job.addons for job in rivals):
            return
        shared = self.shared
        core, door, proxyserver = shared.core, shared.door, shared.proxyserver()
        answers = Answers(core.local, self.answers(core))
        serve = GuestServe(pull_through=answers, relay=core.relay, door=door, proxyserver=proxyserver)
        seat = Seat(known=shared.config.known, arrivals=shared.arrivals, door=door, relay=core.relay)
        self.add(seat, serve, Pump(proxyserver, core.reads), Crossings(proxyserver))
        if core.local is not None:
            self._receive = Receive(proxyserver=proxyserver, serve=serve, local=core.local)
            self.add(self._receive)

    def answers(self, core: Core) -> Handler:
        """Who answers pulls."""
        raise NotImplementedError
