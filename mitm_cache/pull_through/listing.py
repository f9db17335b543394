"""Lists at a mirror: what is cached, as far as the client may see it, and what upstream adds where it answers.

A list asks no upstream for rights: a repository is in it by a verdict that is kept already.
"""

import asyncio
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from mitm_cache.answers import API_VERSION, outcome_of, pass_back, small, stale, unavailable
from mitm_cache.cache.lists import KeptList
from mitm_cache.errors import ClientError, OfflineError, UpstreamError
from mitm_cache.oci.manifest import OCI_INDEX
from mitm_cache.oci.operation import Referrers, TagList
from mitm_cache.oci.reference import Repository
from mitm_cache.policy import Policy, Question
from mitm_cache.pull_through.gate import Gate
from mitm_cache.pull_through.given import Given, names_in
from mitm_cache.pull_through.knowledge import Knowledge
from mitm_cache.registries import DOCKER_HUB
from mitm_cache.upstream.client import Call
from mitm_cache.upstream.curl import Answer
from mitm_cache.upstream.leg import Leg
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.message import Request, Response

LIST_SIZE = 8 << 20
"""Bytes of upstream's page."""
EMPTY = b'{"repositories":[]}'
AT_ONCE = 500
"""Repositories looked at before others get a turn."""
_COUNT = re.compile("[0-9]{1,9}")
_LINK = re.compile(r'<([^<>]*)>\s*;\s*rel="?next"?')


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
        return cls(names, _following(answer))


class Listings:
    """Answers `tags/list` and `_catalog` for mirrors."""

    def __init__(self, *, known: Knowledge, policy: Policy, gate: Gate, leg: Leg, ttl: float) -> None:
        """`ttl`: seconds that upstream need not be asked again for a list."""
        self._links = known.links
        self._given = Given(known.links, known.blobs)
        self._lists = known.lists
        self._pushed = known.pushed
        self._verdicts = known.verdicts
        self._policy = policy
        self._gate = gate
        self._leg = leg
        self._ttl = ttl

    async def answer(self, request: Request) -> Response:
        """A list. Raises MitmCacheError."""
        call = self._gate.call(request, limit=LIST_SIZE)
        match request.operation:
            case TagList(repository) if request.mirror:
                return await self.tags(request, repository, call)
            case TagList(repository):
                return await self.whole(request, repository, "tags", call)
            case Referrers(repository, digest):
                return await self.whole(request, repository, f"referrers-{digest.filename}", call)
            case _ if request.mirror:
                return await self.catalog(request, call)
            case _:
                try:
                    answer = await self._leg.exchange(call)
                except UpstreamError as error:
                    return await self._unasked(request, error)
                return pass_back(answer, request, outcome_of(answer), f"upstream answered {answer.status}")

    async def tags(self, request: Request, repository: Repository, call: Call) -> Response:
        """The tags of one repository. Raises MitmCacheError."""
        Page.of(request.target)  # before anybody is asked
        registry = request.registry.name
        given = await self._leg.run(lambda: self._given.tags(registry, repository))
        cached: list[str] = []
        open_to = self._gate.is_open_to(request, repository)
        if open_to or self._gate.is_left_open(request, repository):
            cached = await self._leg.run(lambda: self._links.tags(registry, repository))
        answer = await self._ask(call, patient=not (cached or given))
        if answer is not None and not open_to:
            cached = []
        cached += given
        theirs = Theirs.of(answer, "tags")
        if theirs is None and not cached:
            return _without(answer, request)
        return _tags(request, repository, cached, theirs)

    async def whole(self, request: Request, repository: Repository, name: str, call: Call) -> Response:
        """A list as upstream has it, or has had it a moment ago; the last it gave where it is away.

        `name` is the list's among those of its repository. Raises UpstreamError.
        """
        registry = request.registry.name
        plain = "?" not in request.target
        kept = await self._leg.run(lambda: self._lists.find(registry, repository, name)) if plain else None
        if (
            kept is not None
            and kept.is_fresh(self._ttl)
            and not self._pushed.since(registry, repository, None, kept.age or 0)
            and self._gate.is_open_to(request, repository)
        ):
            return _told(kept, request, "HIT", f"upstream said so {kept.told}")
        at = self._lists.now()
        try:
            answer = await self._leg.exchange(
                call, patient=kept is None or not self._gate.is_left_open(request, repository)
            )
            listed = _listed(answer, request)
        except UpstreamError as error:
            return await self._last(request, repository, name, error)
        if listed is not None:
            await self._gate.grant(request, repository)
            whole = plain and answer.headers.get("link") is None
            if whole and (listed or kept is not None or self._is_about_ours(request)):
                media_type = answer.headers.get("content-type") or "application/json"
                await self._leg.record(
                    lambda: self._lists.keep(registry, repository, name, answer.body, media_type, at)
                )
        response = pass_back(answer, request, outcome_of(answer), f"upstream answered {answer.status}")
        if request.mirror and isinstance(request.operation, Referrers):
            path = f"{request.given}{repository}/referrers/{request.operation.digest}"
            response.headers = response.headers.without(["link"]) + _link(request, path, _following(answer))
        return response

    async def _last(self, request: Request, repository: Repository, name: str, error: UpstreamError) -> Response:
        """The list as it was, for who may read it, or of what was put here. Raises the error where there is none."""
        kept = None
        if self._gate.is_left_open(request, repository):
            kept = await self._leg.run(lambda: self._lists.find(request.registry.name, repository, name))
        if (response := await self._put_here(request, kept, error)) is not None:
            return response
        if kept is None:
            raise error
        if isinstance(error, OfflineError):
            return _told(kept, request, "HIT", error.message)
        return stale(_told(kept, request, "STALE", f"{error.message}; it was so {kept.told}"), kept.age)

    def _is_about_ours(self, request: Request) -> bool:
        """Registries have a list, an empty one, for whatever digest somebody thinks of."""
        match request.operation:
            case Referrers(repository, digest):
                return self._links.holds(request.registry.name, repository, digest) is not None
            case _:
                return True

    async def _put_here(self, request: Request, kept: KeptList | None, error: UpstreamError) -> Response | None:
        """The list of what the operator has put here, and what is `kept` of upstream's; None where that is all."""
        registry = request.registry.name
        match request.operation:
            case TagList(repository):
                given = await self._leg.run(lambda: self._given.tags(registry, repository))
                known = names_in(kept.content) if kept is not None else []
                if set(given) <= set(known):
                    return None
                response = _tags(request, repository, [*given, *known])
                response.reason = f"{error.message}; cached, and put here"
                return response
            case Referrers(repository, digest) if kept is None:
                content = await self._leg.run(lambda: self._given.referrers(registry, repository, digest))
                if content is None:
                    return None
                headers = [API_VERSION, ("Content-Type", OCI_INDEX)]
                reason = f"{error.message}; what was put here"
                return small(HTTPStatus.OK, headers, content, request, outcome="LOCAL", reason=reason)
            case _:
                return None

    async def _unasked(self, request: Request, error: UpstreamError) -> Response:
        """The catalog of a registry that does not answer: what is cached, as far as the client may see it."""
        response = await self.catalog(request, None)
        if response.body == EMPTY:
            raise error
        response.reason = f"{error.message}; cached"
        return response

    async def catalog(self, request: Request, call: Call | None) -> Response:
        """The repositories of the registry that was chosen, or of all. Raises MitmCacheError."""
        page = Page.of(request.target)
        wanted = request.registry.name if request.chosen else None
        found = await self._leg.run(lambda: list(self._links.repositories()))
        given = await self._leg.run(self._given.repositories)
        cached = []
        for number, (registry, repository) in enumerate(found):
            if wanted in (None, registry) and self._shows(request, registry, repository, given):
                bare = wanted is not None or registry == DOCKER_HUB.name
                cached.append(str(repository) if bare else f"{registry}/{repository}")
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        answer = await self._ask(call, patient=not cached) if wanted and call is not None else None
        theirs = Theirs.of(answer, "repositories")
        if theirs is not None:
            shown = [name for name in theirs.names if self._is_allowed(request, request.registry.name, name)]
            theirs = Theirs(shown, theirs.following)
        return _answer(request, f"{request.given}_catalog", {}, "repositories", page, cached, theirs)

    def _shows(
        self, request: Request, registry: str, repository: Repository, given: set[tuple[str, Repository]]
    ) -> bool:
        """Whether a client may know of a repository; of those that the operator has put here the policy decides."""
        let = (registry, repository) in given or self._verdicts.allow(registry, repository, request.credential)
        return let and self._is_allowed(request, registry, str(repository))

    def _is_allowed(self, request: Request, registry: str, name: str) -> bool:
        try:
            repository = Repository.parse(name)
        except ClientError:
            return False  # nobody could ask for it
        question = Question(
            registry=registry, repository=repository, reference=None, client=request.client, user=request.user
        )
        return self._policy.judge(question).allowed

    async def _ask(self, call: Call, *, patient: bool) -> Answer | None:
        try:
            return await self._leg.exchange(call, patient=patient)
        except UpstreamError:
            return None


def _listed(answer: Answer, request: Request) -> Any:
    """What upstream's list of tags or referrers holds; None where it has not given one.

    Raises UpstreamError where it cannot say, and for what is no list, such as a page to log in.
    """
    if answer.status in (HTTPStatus.TOO_MANY_REQUESTS, *range(500, 600)):
        raise unavailable(answer)
    if not answer.ok or request.method == "HEAD":
        return None
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.keys().isdisjoint(("tags", "manifests")):
        raise UpstreamError(f"{answer.origin} sent no list")
    return document.get("tags") or document.get("manifests") or []


def _told(kept: KeptList, request: Request, outcome: str, reason: str) -> Response:
    if isinstance(request.operation, TagList) and "?" in request.target:
        response = _tags(request, request.operation.repository, names_in(kept.content))
        response.outcome, response.reason = outcome, reason
        return response
    headers = [API_VERSION, ("Content-Type", kept.media_type)]
    return small(HTTPStatus.OK, headers, kept.content, request, outcome=outcome, reason=reason)


def _without(answer: Answer | None, request: Request) -> Response:
    """Nothing is cached that this client may see: upstream's own word."""
    if answer is None or answer.ok:
        words = "does not answer" if answer is None else "sent no list"
        raise UpstreamError(f"{request.registry.name} {words}, and nothing of this repository is cached")
    outcome = "REFUSED" if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR else "ERROR"
    return pass_back(answer, request, outcome, f"upstream answered {answer.status}")


def _following(answer: Answer) -> str:
    """The query of the next page, "" where there is none."""
    link = _LINK.search(answer.headers.get("link") or "")
    # Of an address only the query is used here; splitting all of it raises where its host is malformed.
    return link[1].partition("#")[0].partition("?")[2] if link else ""


def _link(request: Request, path: str, following: str) -> Headers:
    """Where the next page is, as this client names the registry."""
    space = f"&ns={quote(request.registry.name)}" if request.mirror and request.chosen and not request.given else ""
    return Headers([("Link", f'</v2/{path}?{following}{space}>; rel="next"')] if following else [])


def _tags(request: Request, repository: Repository, cached: Iterable[str], theirs: Theirs | None = None) -> Response:
    path = f"{request.given}{repository}"
    return _answer(request, f"{path}/tags/list", {"name": path}, "tags", Page.of(request.target), cached, theirs)


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
    headers = [API_VERSION, ("Content-Type", "application/json"), *_link(request, path, following)]
    content = json.dumps(head | {key: names}, separators=(",", ":")).encode()
    return small(HTTPStatus.OK, headers, content, request, outcome="LOCAL", reason=reason)
