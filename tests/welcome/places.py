"""A cache's facts for the tests, with a CA of their own."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mitm_cache.ca import CertificateAuthority
from mitm_cache.registries import TABLE, Known
from mitm_cache.welcome.facts import Facts, Place

ADDRESS = "192.0.2.10"
PLACES = {
    "tls": Place(ADDRESS, 443),
    "clear": Place(ADDRESS, 80),
    "connect": Place(ADDRESS, 3128),
    "mirror": Place(ADDRESS, 5000),
}


def make_authority(directory: Path) -> CertificateAuthority:
    """A new CA."""
    return CertificateAuthority.create(directory, permitted=["quay.io"], now=datetime.now(UTC))


def make_facts(authority: CertificateAuthority, **places: Place | None) -> Facts:
    """What a cache tells that listens on its usual ports, but for `places`."""
    facts = Facts(
        certificate=authority.export("pem"),
        certificate_der=authority.export("der"),
        fingerprint=authority.fingerprint,
        names=("docker.proxy",),
        places=PLACES,
        known=Known(TABLE),
        version="1.2.3",
    )
    wanted = {**PLACES, **places}
    return replace(facts, places={listener: place for listener, place in wanted.items() if place})
