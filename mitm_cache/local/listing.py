"""What there is: tags, repositories, and what refers to a manifest."""

import json
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from urllib.parse import quote, urlencode

from mitm_cache.answers import API_VERSION, small
from mitm_cache.errors import ClientError
from mitm_cache.local.places import fields, place, space
from mitm_cache.local.rights import Rights
from mitm_cache.local.store import Store
from mitm_cache.local.threads import Threads
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.manifest import MAX_SIZE, OCI_INDEX
from mitm_cache.oci.reference import Repository
from mitm_cache.oci.referring import Referrer, listing
from mitm_cache.pull_through.listing import Page
from mitm_cache.registries import LOCAL
from mitm_cache.wire.message import Request, Response


class Lists:
    """Answers for lists; who asks may pull. All of it raises MitmCacheError."""

    def __init__(self, *, store: Store, rights: Rights, threads: Threads) -> None:
        self._store = store
        self._rights = rights
        self._threads = threads

    async def tags(self, request: Request, repository: Repository) -> Response:
        """The tags of one repository."""
        page = Page.of(request.target)
        names = await self._threads.look(lambda: self._store.links.tags(LOCAL, repository))
        if not names and not await self._threads.look(lambda: self._store.is_there(repository)):
            raise ClientError(f"there is no repository {LOCAL}/{repository}", status=404, code="NAME_UNKNOWN")
        path = f"{request.given}{repository}"
        return _answer(request, f"{path}/tags/list", {"name": path}, "tags", page, names)

    async def catalog(self, request: Request) -> Response:
        """The repositories that this client may see."""
        page = Page.of(request.target)
        found = await self._threads.look(self._store.repositories)
        names = [str(repository) for repository in found if self._rights.may_see(request, repository)]
        return _answer(request, f"{request.given}_catalog", {}, "repositories", page, names)

    async def referrers(self, request: Request, repository: Repository, subject: Digest) -> Response:
        """What refers to a manifest, of one type where the client asks for one (distribution-spec, "Listing
        Referrers"). A page is about as large as a manifest may be."""
        asked = fields(request)
        wanted = asked.get("artifactType", "")
        last = Digest.parse(asked["last"]) if "last" in asked else None
        found, more, body = await self._threads.look(lambda: self._page(repository, subject, wanted, last))
        headers = [API_VERSION, ("Content-Type", OCI_INDEX)]
        if wanted:
            headers.append(("OCI-Filters-Applied", "artifactType"))
        if more:
            query = urlencode({"last": str(found[-1].digest)} | ({"artifactType": wanted} if wanted else {}))
            headers.append(("Link", f'<{place(request, repository, f"referrers/{subject}", query)}>; rel="next"'))
        reason = f"{len(found)} refer to it"
        return small(HTTPStatus.OK, headers, body, request, outcome="LOCAL", reason=reason)

    def _page(
        self, repository: Repository, subject: Digest, wanted: str, last: Digest | None
    ) -> tuple[list[Referrer], bool, bytes]:
        """Those behind `last`, whether more follow, and their list."""
        found: list[Referrer] = []
        size = 0
        for one in self._referrers(repository, subject, last):
            if wanted and one.artifact_type != wanted:
                continue
            size += len(json.dumps(one.descriptor()))
            if found and size > MAX_SIZE:
                return found, True, listing(found)
            found.append(one)
        return found, False, listing(found)

    def _referrers(self, repository: Repository, subject: Digest, last: Digest | None) -> Iterator[Referrer]:
        for digest in self._store.referring(repository, subject):
            if last is not None and digest <= last:
                continue
            link = self._store.manifest(repository, digest)
            content = self._store.content(digest) if link is not None else None
            if link is None or content is None:
                continue
            with self._threads.reading:
                one = Referrer.of(content, digest, link.media_type)
            if one is not None:
                yield one


def _answer(request: Request, path: str, head: dict[str, str], key: str, page: Page, found: Iterable[str]) -> Response:
    names, more = page.cut(found)
    headers = [API_VERSION, ("Content-Type", "application/json")]
    if more and names:
        query = "&".join(part for part in (urlencode({"last": names[-1], "n": page.count}), space(request)) if part)
        headers.append(("Link", f'</v2/{quote(path)}?{query}>; rel="next"'))
    content = json.dumps(head | {key: names}, separators=(",", ":")).encode()
    return small(HTTPStatus.OK, headers, content, request, outcome="LOCAL", reason=f"{len(names)} {key}")
