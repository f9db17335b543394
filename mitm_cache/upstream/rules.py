"""From the configuration to routes: where each registry is, whom to trust there, and by which proxy."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from mitm_cache.config import Config
from mitm_cache.parsing import DIRECT
from mitm_cache.upstream.route import HostRule, Names, Own, Proxies, Router
from mitm_cache.upstream.trust import check_client_certificate, system_store, write_bundle
from mitm_cache.wire.proxies import Proxy
from mitm_cache.wire.redirect import Origin

logger = logging.getLogger(__name__)


def bases(config: Config) -> dict[str, str]:
    """The URL of each registry that the configuration speaks of."""
    return {name: upstream.url or f"https://{_host(config, name)}" for name, upstream in config.upstreams.items()}


def router(config: Config, *, folder: Path, listeners: Iterable[tuple[str, int]], environ: Mapping[str, str]) -> Router:
    """The router of a cache that listens at these addresses; files of certificates are written to `folder`.

    Raises ConfigError, StoreError.
    """
    system = system_store(environ)
    if system is None:
        logger.warning("no system store of certificates was found: upstream is trusted by ca_file only")
    common = [config.ca_file] if config.ca_file else []
    trust = write_bundle(folder, system=system, extra=common)
    rules: dict[Origin | str, HostRule] = {}
    for name, upstream in config.upstreams.items():
        own_trust = write_bundle(folder, system=system, extra=[*common, upstream.ca_file]) if upstream.ca_file else None
        if upstream.client_cert is not None:
            check_client_certificate(f"registries.{name}.client_cert", upstream.client_cert)
        if upstream.insecure:
            logger.warning("%s", insecure_warning(name))
        origin = Origin.of(bases(config)[name])
        rule = HostRule(upstream.resolve, own_trust, upstream.client_cert, upstream.insecure)
        rules[origin] = rule
        # Who we are, and that anybody is believed, is for that port alone.
        rules[origin.host] = replace(rule, client_cert=None, insecure=False)
    own = Own()
    for address, port in listeners:
        own.add(address, port)
    return Router(names=lambda: Names(config.resolvers), rules=rules, trust=trust, own=own, proxies=proxies(config))


def insecure_warning(name: str) -> str:
    """What the operator is told at each start."""
    return (
        f"registries.{name}.insecure: TLS is NOT verified. Whoever is on the way to it can read the credentials "
        "and choose what a tag means; give its CA as ca_file instead"
    )


def proxies(config: Config) -> Proxies:
    """Which proxy leads where."""
    registries: dict[str, Proxy | None] = {}
    owners: dict[str, str] = {}
    for name, upstream in config.upstreams.items():
        if isinstance(upstream.proxy, Proxy):
            registries[name] = upstream.proxy
        elif upstream.proxy == DIRECT:
            registries[name] = None
        registry = config.known.named(name)
        assert registry is not None
        for host in (Origin.of(bases(config)[name]).host, *registry.names, *registry.auth_hosts):
            owners.setdefault(host.partition(":")[0], name)
    return Proxies(config.proxy, config.no_proxy, registries, owners)


def _host(config: Config, name: str) -> str:
    registry = config.known.named(name)
    assert registry is not None
    return registry.host
