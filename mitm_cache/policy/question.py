"""What the policy is asked about. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from posixpath import normpath
from urllib.parse import parse_qs, unquote

from mitm_cache.errors import ClientError
from mitm_cache.oci.operation import Blob, Manifest, Operation, Other, Ping, classify, repository_of
from mitm_cache.oci.reference import Reference, Repository
from mitm_cache.wire.message import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Who wants what: `repository` is None for a whole registry, `reference` for a whole repository.

    `registry` is the registry's name, `client` an IP address, `user` a name of the users file, "" for a stranger.
    """

    registry: str
    repository: Repository | None
    reference: Reference | None
    client: str
    user: str = ""

    def __str__(self) -> str:
        """What is wanted, as an image is named."""
        if self.repository is None:
            return self.registry
        name = f"{self.registry}/{self.repository}"
        if self.reference is None:
            return name
        return f"{name}{'@' if ':' in str(self.reference) else ':'}{self.reference}"


def question_of(request: Request) -> Question | None:
    """What a request asks of the policy; None for what is never judged.

    That are pings, by which clients find out that this is a registry and would show no reason, and what is no part of
    a registry's API, such as logins.
    """
    match request.operation:
        case Ping() | Other():
            return None
        case Manifest(_, reference):
            wanted: Reference | None = reference
        case Blob(_, digest):
            wanted = digest
        case _:
            wanted = None
    return Question(
        registry=request.registry.name,
        repository=repository_of(request.operation),
        reference=wanted,
        client=request.client,
        user=request.user,
    )


def questions_of(request: Request) -> Iterator[Question]:
    """All that a request asks which is passed on as it is: a mounted blob's other repository too.

    A path that is none of the API's may become one where it is read less strictly than here.
    """
    for operation in dict.fromkeys((request.operation, _meant(request.target))):
        question = question_of(replace(request, operation=operation))
        if question is None:
            continue
        yield question
        for name in parse_qs(request.target.partition("?")[2]).get("from", []):
            try:
                yield replace(question, repository=Repository.parse(name), reference=None)
            except ClientError:
                continue  # nothing that a registry could have


def _meant(target: str) -> Operation:
    path = target.partition("?")[0]
    for _ in range(3):  # encoded, and encoded again
        path = unquote(path)
    path = re.sub(r";[^/\\]*", "", path)  # parameters of a segment (RFC 3986, 3.3), which some servers drop
    try:
        return classify(normpath(re.sub(r"[/\\]+", "/", path)))
    except ClientError:
        return Other()
