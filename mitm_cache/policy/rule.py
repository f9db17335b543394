"""One row of the policy, and which requests it is about. Pure."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache

from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Tag
from mitm_cache.policy.question import Question

ANY_USER = "*"

type Network = ipaddress.IPv4Network | ipaddress.IPv6Network
type Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Action(StrEnum):
    """What a row does with the requests that it is about."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Fill:
    """For whom content that is not cached is fetched: anyone, or who is in one of these networks or of these users."""

    anyone: bool = True
    clients: tuple[Network, ...] = ()
    users: tuple[str, ...] = ()

    def takes(self, question: Question) -> bool:
        """Whether who asks is one of them."""
        return self.anyone or is_user(question.user, self.users) or is_within(question.client, self.clients)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row. Of `registry`, `repository` and `tag` any pattern has to match, and each that is empty matches all.

    `number` counts from 1. `min_age` and `tag_ttl` are seconds; a `tag_ttl` of None is the cache's own.
    """

    number: int
    name: str = ""
    registry: tuple[str, ...] = ()
    repository: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()
    clients: tuple[Network, ...] = ()
    users: tuple[str, ...] = ()
    action: Action = Action.ALLOW
    fill: Fill = field(default_factory=Fill)
    freeze: Digest | None = None
    min_age: float = 0.0
    tag_ttl: float | None = None

    def __str__(self) -> str:
        """What answers, the log and `why` call it."""
        return f'policy "{self.name}"' if self.name else f"policy {self.number}"

    def miss(self, question: Question) -> str:
        """The first key that does not match, "" where all do.

        Content by digest has no tag. A row that allows some tags lets their layers through, since nobody can tell
        whose they are; a row that denies some is not about content by digest.
        """
        if not self.is_about(question.registry):
            return "registry"
        if self.repository and (question.repository is None or not _fits(question.repository.name, self.repository)):
            return "repository"
        if self.tag and not self._fits_tag(question):
            return "tag"
        if self.clients and not is_within(question.client, self.clients):
            return "clients"
        if self.users and not is_user(question.user, self.users):
            return "users"
        return ""

    def is_about(self, registry: str) -> bool:
        """Whether requests to a registry, by its name, can match."""
        return not self.registry or _fits(registry, self.registry)

    def _fits_tag(self, question: Question) -> bool:
        if isinstance(question.reference, Tag):
            return _fits(question.reference.name, self.tag)
        return question.repository is not None and self.action is Action.ALLOW


def is_user(user: str, users: Sequence[str]) -> bool:
    """Whether a user is one of these; a stranger, "", is none."""
    return user != "" and (user in users or ANY_USER in users)


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """Whether an address, IPv4 mapped into IPv6 included, is in one of these networks; what is no address is not."""
    if not networks:
        return False
    parsed = _address(address)
    return parsed is not None and any(parsed in network for network in networks)


@lru_cache(4096)
def _address(text: str) -> Address | None:
    try:
        parsed = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, ipaddress.IPv6Address) else parsed


def _fits(text: str, patterns: Sequence[str]) -> bool:
    # Patterns hold none of fnmatch's other signs: the table lets only * through.
    return text in patterns or any("*" in pattern and fnmatchcase(text, pattern) for pattern in patterns)
