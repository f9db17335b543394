"""What would happen to a pull, and by which rule: read from the configuration and the disk; upstream is not asked.

All values are plain, so that the whole can be printed and written as JSON.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from mitm_cache.cache import entry
from mitm_cache.cache.survey import Survey
from mitm_cache.config import Config
from mitm_cache.oci.contents import Contents, Descriptor
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.image import Image
from mitm_cache.oci.reference import Reference, Repository, Tag
from mitm_cache.parsing import Rights
from mitm_cache.policy import Policy, Question, Ruling, tell_denial, tell_unfilled
from mitm_cache.policy.rule import is_within
from mitm_cache.registries import LOCAL, Registry
from mitm_cache.rights import Modes
from mitm_cache.upstream.rules import bases, proxies
from mitm_cache.wire.redirect import Origin

MAX_DEPTH = 3
"""An index may list indexes, which clients follow no further than this."""

_RIGHTS = {
    Rights.CLIENT: "each client has what the registry lets it have",
    Rights.SHARED: "a client without a credential has what the cache's own may have",
    Rights.OPEN: "every client has what is cached",
}
_GIVEN = "{} by the operator: the policy alone says who may have it, and no right is asked upstream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a registry is reached, whose right counts there, and the cache's own credential by its name."""

    registry: str
    url: str
    proxy: str
    rights: str
    rights_mean: str
    credential: str


@dataclass(frozen=True, slots=True)
class Step:
    """A row of the policy, and the first key of it that does not match; "" where all do."""

    rule: str
    missed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the policy says; times in seconds."""

    rule: str
    allowed: bool
    may_fill: bool
    freeze: str
    min_age: float
    tag_ttl: float | None
    login_helps: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One platform's image: how much of what its manifest refers to is here; None where the manifest is not."""

    digest: str
    platform: str
    cached: bool
    blobs: int | None = None
    blobs_cached: int | None = None
    size: int | None = None
    size_cached: int | None = None

    @property
    def complete(self) -> bool:
        return self.cached and self.blobs == self.blobs_cached


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A manifest that would be served: `since` is when the tag was first heard to be it, `asked` when upstream last
    said so, `used` when it was last used, to an hour, and `ready` from when on the policy lets the tag be it, "" where
    it does now. `origin` is how it came here, pulled, synced or imported, "" where that is not known; `rights_mean` who
    may have it, "" where that is as the registry's `rights` say."""

    digest: str
    media_type: str
    cached: bool
    size: int | None
    since: str
    asked: str
    used: str
    ready: str
    origin: str
    rights_mean: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All of it; what was not come to is empty."""

    image: str
    client: str
    user: str
    way: Way | None = None
    steps: tuple[Step, ...] = ()
    policy: Outcome | None = None
    contents: tuple[Content, ...] = ()
    served: bool
    reason: str


def explain(
    config: Config, image: Image, *, client: str, user: str = "", clock: Callable[[], float] = time.time
) -> Explanation:
    """What this client, a stranger unless there is a user, would get of an image. Raises StoreError."""
    registry = config.known.find(image.registry)
    if registry is None:
        where = "local.names" if image.registry == LOCAL else "[registries]"
        reason = f"{image.registry} is not a registry that this cache serves; {where} of its configuration adds one"
        return Explanation(image=str(image), client=client, user=user, served=False, reason=reason)
    question = Question(
        registry=registry.name, repository=image.repository, reference=image.reference, client=client, user=user
    )
    policy = Policy(config.policy)
    ruling = policy.judge(question)
    contents = tuple(_contents(Survey(config.data_dir), registry, image, ruling, clock()))
    judge = _pushed if registry.is_local else _verdict
    served, reason = judge(config, question, ruling, contents)
    return Explanation(
        image=str(question),
        client=client,
        user=user,
        way=None if registry.is_local else _way(config, registry, image.repository),
        steps=tuple(Step(str(step.rule), step.missed) for step in policy.steps(question)),
        policy=Outcome(
            rule=ruling.rule,
            allowed=ruling.allowed,
            may_fill=ruling.may_fill,
            freeze=str(ruling.freeze or ""),
            min_age=ruling.min_age,
            tag_ttl=ruling.tag_ttl,
            login_helps=ruling.login_helps,
        ),
        contents=contents,
        served=served,
        reason=reason,
    )


def _way(config: Config, registry: Registry, repository: Repository) -> Way:
    url = bases(config).get(registry.name, f"https://{registry.host}")
    proxy = proxies(config).choose(Origin.of(url), registry.name)
    rights = Modes(config).rights(registry.name)
    return Way(
        registry=registry.name,
        url=url,
        proxy=str(proxy or ""),
        rights=rights.value,
        rights_mean=_RIGHTS[rights],
        credential=_credential(config, registry, repository),
    )


def _credential(config: Config, registry: Registry, repository: Repository) -> str:
    """The name of the cache's own credential; it is not read, so that this works without the right to."""
    upstream = config.upstreams.get(registry.name)
    for rule in upstream.credentials if upstream is not None else ():
        if fnmatchcase(repository.name, rule.repository):
            about = "" if rule.repository == "*" else f" (for {rule.repository})"
            return f"registries.{registry.name}.credentials.{rule.source}{about}"
    return ""


def _contents(survey: Survey, registry: Registry, image: Image, ruling: Ruling, now: float) -> Iterator[Content]:
    """What the reference means to this cache, the latest first."""
    reference: Reference = ruling.freeze or image.reference
    if isinstance(reference, Tag):
        for tagged in survey.tagged(registry.name, image.repository, reference):
            ready = tagged.since + ruling.min_age
            yield replace(
                _content(survey, registry, image.repository, tagged.digest, tagged.media_type),
                since=_time(tagged.since),
                asked=_time(tagged.asked) if tagged.asked is not None else "",
                ready=_time(ready) if ready > now else "",
            )
        return
    link = survey.holds(registry.name, image.repository, reference)
    if link is not None:
        yield _content(survey, registry, image.repository, reference, link.media_type)


def _content(survey: Survey, registry: Registry, repository: Repository, digest: Digest, media_type: str) -> Content:
    kept = survey.kept(digest)
    link = survey.holds(registry.name, repository, digest)
    theirs = link is None or link.origin in (entry.Origin.PULLED, entry.Origin.LOCAL)
    given = link.origin if link is not None and not theirs else None
    return Content(
        digest=str(digest),
        media_type=media_type,
        cached=kept is not None,
        size=kept.size if kept else None,
        since="",
        asked="",
        used=_time(kept.used) if kept else "",
        ready="",
        origin=link.origin.value if link else "",
        rights_mean=_GIVEN.format(given.value) if given else "",
        parts=tuple(_parts(survey, Descriptor(digest, 0), MAX_DEPTH)) if kept else (),
    )


def _parts(survey: Survey, manifest: Descriptor, depth: int) -> Iterator[Part]:
    content = survey.manifest(manifest.digest)
    found = Contents.of(content) if content is not None else Contents()
    if found.manifests and depth:
        for child in found.manifests:
            yield from _parts(survey, child, depth - 1)
        return
    digest, platform = str(manifest.digest), manifest.platform
    if content is None:
        yield Part(digest=digest, platform=platform, cached=False)
        return
    here = [blob for blob in found.blobs if survey.kept(blob.digest) is not None]
    yield Part(
        digest=digest,
        platform=platform,
        cached=True,
        blobs=len(found.blobs),
        blobs_cached=len(here),
        size=sum(blob.size for blob in found.blobs),
        size_cached=sum(blob.size for blob in here),
    )


def _pushed(config: Config, question: Question, ruling: Ruling, contents: tuple[Content, ...]) -> tuple[bool, str]:
    """The same of an image of the local registry, which has no upstream."""
    if is_within(question.client, config.allow) and ruling.allowed:
        if not any(content.cached for content in contents):
            daemon = f"; the daemon at {config.local.daemon} is asked for it first" if config.local.daemon else ""
            return False, f"nobody has pushed {question} to the local registry{daemon}"
        return True, "it was pushed to the local registry"
    return _verdict(config, question, ruling, contents)


def _verdict(config: Config, question: Question, ruling: Ruling, contents: tuple[Content, ...]) -> tuple[bool, str]:
    """Whether this cache would serve it, and why. What upstream would say is not known here."""
    old = [content for content in contents if not content.ready]
    complete = [part for content in old for part in content.parts if part.complete]
    if not is_within(question.client, config.allow):
        return False, f"{question.client} is not in clients.allow"
    if not ruling.allowed:
        return False, tell_denial(question, ruling)
    if ruling.min_age and not old:
        when = min((content.ready for content in contents), default="")
        words = f"until {when}" if when else f"for {span(ruling.min_age)} from when this cache first hears of it"
        return False, f"{ruling.rule} has {question} wait {words}"
    if not ruling.may_fill and not complete:
        return False, tell_unfilled(question, ruling)
    offline = config.is_offline(question.registry)
    if offline and not complete:
        return False, f"{question.registry} is offline by configuration, and {question} is not cached, or not all of it"
    if complete:
        platforms = ", ".join(part.platform for part in complete if part.platform) or "it"
        rest = "" if ruling.may_fill and not offline else "; what is not cached is refused"
        return True, f"all of {platforms} is in the cache{rest}"
    if any(content.cached for content in old):
        return True, "a part is in the cache, and the rest is fetched from upstream"
    return True, "it is not in the cache, and is fetched from upstream"


def span(seconds: float) -> str:
    """A length of time as it is written in the configuration."""
    for sign, unit in (("w", 604800), ("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:.0f}{sign}"
    return f"{seconds:g}s"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
