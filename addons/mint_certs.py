"""Show clients leaves of mitm-cache's own name-constrained CA: `mitmdump -s mint_certs.py`.

This is `mitm_cache.proxy.intercept.Intercept` over `mitm_cache.ca`. Names that are no registry's are left to mitmproxy,
which signs for them with the CA of its confdir.
"""

from datetime import UTC, datetime

from mitm_cache.ca.custody import Custody
from mitm_cache.ca.given import GivenCertificate
from mitm_cache.embed import Job
from mitm_cache.proxy.guest import GuestIntercept
from mitm_cache.proxy.intercept import LocalNames


class Minting(Job):
    """The job of this script."""

    name = "mint_certs"

    def start(self) -> None:
        """Open the CA; it is made where there is none."""
        config = self.shared.config
        authority = Custody.open(config.ca_dir, permitted=config.permitted_names(), clock=_now)
        hosts = config.known.local_hosts
        ways = self.shared.arrivals.ways
        self.add(
            GuestIntercept(
                authority=authority,
                names=config.known.server_names,
                journal=self.shared.journal,
                listeners=lambda connection: ways[connection].listener if connection in ways else "tls",
                clock=_now,
                local=LocalNames(
                    hosts, config.clear_names(), GivenCertificate.open(config.local.cert, config.local.key, hosts)
                ),
            )
        )


def _now() -> datetime:
    return datetime.now(UTC)


addons = [Minting()]
