"""Lists at a mirror: what is cached, as far as the client may see it, and what upstream adds where it answers.

A list asks no upstream for rights: a repository is in it by a verdict that is kept already.
"""

import asyncio
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs, quote, urlencode

from mitm_cache.answers import API_VERSION, pass_back, small
from mitm_cache.cache.links import Links
from mitm_cache.errors import ClientError, UpstreamError
from mitm_cache.oci.reference import Repository
from mitm_cache.registries import DOCKER_HUB
from mitm_cache.rights import Verdicts
from mitm_cache.upstream.client import Call
from mitm_cache.upstream.curl import Answer
from mitm_cache.upstream.leg import Leg
from mitm_cache.wire.message import Request, Response

LIST_SIZE = 8 << 20
"""Bytes of upstream's page."""
AT_ONCE = 500
"""Repositories looked at before others get a turn."""
_COUNT = re.compile("[0-9]{1,9}")
_LINK = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')


@dataclass(frozen=True, slots=True)
class Page:
    """What a client asks for: names after `last`, at most `count` of them (distribution-spec, "Listing Tags")."""

    last: str
    count: int | None

    @classmethod
    def of(cls, target: str) -> "Page":
        """Raise ClientError where `n` is no number."""
        fields = parse_qs(target.partition("?")[2])
        count = fields.get("n", [""])[0]
        if count and not _COUNT.fullmatch(count):
            raise ClientError(f"n={count[:20]!r} is not a number of names")
        return cls(fields.get("last", [""])[0], int(count) if count else None)

    def cut(self, names: Iterable[str]) -> tuple[list[str], bool]:
        """This page of `names`, and whether another follows."""
        rest = sorted({name for name in names if name > self.last})
        return (rest, False) if self.count is None else (rest[: self.count], len(rest) > self.count)


@dataclass(frozen=True, slots=True)
class Theirs:
    """Upstream's page: its names in its own order, and the query of its next page, "" where this is the last."""

    names: list[str]
    following: str

    @classmethod
    def of(cls, answer: Answer | None, key: str) -> "Theirs | None":
        """None where upstream has no list."""
        if answer is None or not answer.ok:
            return None
        try:
            document = json.loads(answer.body)
        except (ValueError, RecursionError):
            return None
        found = document.get(key) if isinstance(document, dict) else None
        names = [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
        link = _LINK.search(answer.headers.get("link") or "")
        # Of an address only the query is used here; splitting all of it raises where its host is malformed.
        return cls(names, link[1].partition("#")[0].partition("?")[2] if link else "")


class Listings:
    """Answers `tags/list` and `_catalog` for mirrors."""

    def __init__(self, *, links: Links, verdicts: Verdicts, leg: Leg) -> None:
        self._links = links
        self._verdicts = verdicts
        self._leg = leg

    async def tags(self, request: Request, repository: Repository, call: Call) -> Response:
        """The tags of one repository. Raises MitmCacheError."""
        page = Page.of(request.target)
        registry = request.registry.name
        cached: list[str] = []
        if self._verdicts.allow(registry, repository, request.credential):
            cached = await self._leg.run(lambda: self._links.tags(registry, repository))
        answer = await self._ask(call)
        theirs = Theirs.of(answer, "tags")
        if theirs is None and not cached:
            return _without(answer, request)
        path = f"{request.given}{repository}"
        return _answer(request, f"{path}/tags/list", {"name": path}, "tags", page, cached, theirs)

    async def catalog(self, request: Request, call: Call) -> Response:
        """The repositories of the registry that was chosen, or of all. Raises MitmCacheError."""
        page = Page.of(request.target)
        wanted = request.registry.name if request.chosen else None
        found = await self._leg.run(lambda: list(self._links.repositories()))
        cached = []
        for number, (registry, repository) in enumerate(found):
            if wanted in (None, registry) and self._verdicts.allow(registry, repository, request.credential):
                bare = wanted is not None or registry == DOCKER_HUB.name
                cached.append(str(repository) if bare else f"{registry}/{repository}")
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        theirs = Theirs.of(await self._ask(call), "repositories") if wanted else None
        return _answer(request, f"{request.given}_catalog", {}, "repositories", page, cached, theirs)

    async def _ask(self, call: Call) -> Answer | None:
        try:
            return await self._leg.exchange(call)
        except UpstreamError:
            return None


def _without(answer: Answer | None, request: Request) -> Response:
    """Nothing is cached that this client may see: upstream's own word."""
    if answer is None:
        raise UpstreamError(f"{request.registry.name} does not answer, and nothing of this repository is cached")
    outcome = "REFUSED" if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR else "ERROR"
    return pass_back(answer, request, outcome, f"upstream answered {answer.status}")


def _answer(
    request: Request,
    path: str,
    head: dict[str, str],
    key: str,
    page: Page,
    cached: Iterable[str],
    theirs: Theirs | None,
) -> Response:
    if theirs is not None and (theirs.following or page.last):
        # A list of several pages is upstream's own: its order is not everywhere that of the names.
        names, following, reason = theirs.names, theirs.following, "upstream's page"
    else:
        names, more = page.cut([*cached, *(theirs.names if theirs else [])])
        following = urlencode({"last": names[-1], "n": page.count}) if more and names else ""
        reason = "cached, and what upstream has" if theirs else "cached; upstream has no list for this client"
    headers = [API_VERSION, ("Content-Type", "application/json")]
    if following:
        space = f"&ns={quote(request.registry.name)}" if request.chosen and not request.given else ""
        headers.append(("Link", f'</v2/{path}?{following}{space}>; rel="next"'))
    content = json.dumps(head | {key: names}, separators=(",", ":")).encode()
    return small(HTTPStatus.OK, headers, content, request, outcome="LOCAL", reason=reason)
