"""The configuration of one filling: the service's, and what the file says of its registries."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mitm_cache.config import Config
from mitm_cache.config.registries import Upstream
from mitm_cache.errors import ConfigError, StoreError, UpstreamError
from mitm_cache.filling.listed import Listed, Source
from mitm_cache.oci.digest import Digest
from mitm_cache.registries import Known, Registry
from mitm_cache.upstream import rules
from mitm_cache.upstream.credentials import Credentials, Keeper, Kind, Login
from mitm_cache.upstream.credentials_sources import open_credentials
from mitm_cache.upstream.curl import Outgoing, Transport
from mitm_cache.upstream.trust import write_bundle
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.redirect import Origin

PROBE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Given:
    """A credential that stands in a file."""

    key: str
    login: Login

    def check(self) -> None:
        """It is at hand."""

    def stamp(self) -> object:
        """It stays as it was read."""
        return self.key

    def read(self) -> Login:
        return self.login


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a core is made of; `strangers` are registries that the service itself does not know."""

    config: Config
    credentials: Credentials
    strangers: tuple[str, ...]


def prepare(
    config: Config,
    listed: Listed,
    folder: Path,
    environ: Mapping[str, str],
    stopped: Callable[[], bool] = lambda: False,
) -> Prepared:
    """Join both. Certificates are written to `folder`. May ask a registry that is not verified whether it speaks TLS;
    `stopped` tells that nobody waits for the answer any more.

    Raises MitmCacheError.
    """
    hosts = listed.hosts | set(listed.sources)
    strangers = tuple(sorted(host for host in hosts if config.known.find(host) is None))
    if any(registry is not None and registry.is_local for registry in map(config.known.find, hosts)):
        raise ConfigError("images of the local registry are pushed to it: nothing is fetched for it from elsewhere")
    known = Known([*config.known, *(Registry(host, host) for host in strangers)])
    upstreams = dict(config.upstreams)
    keepers: dict[str, Keeper] = {}
    for host, source in listed.sources.items():
        registry = known.find(host)
        assert registry is not None
        name = registry.name
        upstreams[name] = _upstream(upstreams.get(name, Upstream()), source, folder)
        if source.login is not None:
            keepers[name] = Keeper("*", Given(f"the credentials of {host}", Login(Kind.PASSWORD, *source.login)))
    config = replace(config, known=known, upstreams=upstreams)
    credentials = open_credentials(config, environ).preferring(keepers)
    return Prepared(_in_clear(config, listed, folder, environ, stopped), credentials, strangers)


def _upstream(upstream: Upstream, source: Source, folder: Path) -> Upstream:
    if source.verify is not None:
        upstream = replace(upstream, insecure=not source.verify)
    if source.certificates is None:
        return upstream
    authorities = sorted(source.certificates.glob("*.crt"))
    pairs = [path for path in sorted(source.certificates.glob("*.cert")) if path.with_suffix(".key").is_file()]
    if authorities:
        upstream = replace(upstream, ca_file=write_bundle(folder, system=None, extra=authorities))
    if pairs:
        upstream = replace(upstream, client_cert=_join(pairs[0], folder))
    return upstream


def _join(certificate: Path, folder: Path) -> Path:
    """A client's certificate and its key in one file, as libcurl reads them."""
    try:
        content = certificate.read_bytes() + b"\n" + certificate.with_suffix(".key").read_bytes()
    except OSError as error:
        raise ConfigError(f"cert-dir: {certificate} and its key cannot be read: {error.strerror}") from error
    target = folder / f"client-{Digest.of(content).hex[:16]}.pem"
    draft = target.with_suffix(f".{os.getpid()}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        draft.replace(target)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror}") from error
    return target


def _in_clear(
    config: Config, listed: Listed, folder: Path, environ: Mapping[str, str], stopped: Callable[[], bool]
) -> Config:
    """Where TLS is not verified, a registry may not speak it at all: it is asked, as skopeo does."""
    upstreams = dict(config.upstreams)
    asked = [host for host, source in listed.sources.items() if source.verify is False]
    if not asked:
        return config
    transport = Transport(agent="mitm-cache", stopped=stopped)
    try:
        router = rules.router(config, folder=folder, listeners=(), environ=environ)
        for host in asked:
            registry = config.known.find(host)
            assert registry is not None
            if upstreams[registry.name].url or config.is_offline(registry.name):
                continue
            for scheme in () if stopped() else ("https", "http"):
                url = f"{scheme}://{registry.host}"
                try:
                    route = router.find(Origin.of(url), registry.name)
                    transport.perform(Outgoing("GET", f"{url}/v2/", Headers()), route, seconds=PROBE_SECONDS)
                except UpstreamError:
                    continue  # what is wrong is said when an image is asked for
                upstreams[registry.name] = replace(upstreams[registry.name], url=url)
                break
    finally:
        transport.close()
    return replace(config, upstreams=upstreams)
