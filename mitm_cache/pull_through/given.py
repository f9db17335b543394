"""Lists of what the operator has put here, imported or synced: upstream need not know of it, nor be there."""

import json

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.entry import Origin
from mitm_cache.cache.links import Links
from mitm_cache.errors import StoreError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, MAX_SIZE, OCI_INDEX, OCI_MANIFEST, media_type_of
from mitm_cache.oci.reference import Repository
from mitm_cache.oci.referring import Referrer, listing

MANIFESTS = frozenset({OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST})


class Given:
    """Read from the links. All of it blocks on the disk, and raises StoreError."""

    def __init__(self, links: Links, blobs: Blobs) -> None:
        self._links = links
        self._blobs = blobs

    def tags(self, registry: str, repository: Repository) -> list[str]:
        """The tags that were put here."""
        return [tag.name for tag, _ in self._links.given(registry, repository)]

    def repositories(self) -> set[tuple[str, Repository]]:
        """The repositories that have such tags."""
        return {place for place in self._links.repositories() if next(self._links.given(*place), None) is not None}

    def referrers(self, registry: str, repository: Repository, subject: Digest) -> bytes | None:
        """What refers to a manifest that was put here, as a list; None where it was not."""
        about = self._links.holds(registry, repository, subject)
        if about is None or about.origin is Origin.PULLED:
            return None
        found = []
        for link in self._links.held(registry, repository):
            if link.origin is Origin.PULLED or link.size > MAX_SIZE or media_type_of(link.media_type) not in MANIFESTS:
                continue
            try:
                content = self._blobs.path(link.digest).read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StoreError(f"blob {link.digest} cannot be read: {error.strerror}") from error
            referrer = Referrer.of(content, link.digest, link.media_type)
            if referrer is not None and referrer.subject == subject:
                found.append(referrer)
        return listing(found)


def names_in(content: bytes) -> list[str]:
    """The tags in a list as a registry gives it."""
    try:
        tags = json.loads(content)["tags"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
