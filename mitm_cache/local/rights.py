"""Who may do what at the local registry: the policy decides, and where there are users strangers do not push.

A row decides about pushes where it names the registry or says for whom it fills; rows about all registries and rows
that say what a tag is, which speak of pulls, do not let strangers push.
"""

from dataclasses import replace

from mitm_cache.errors import ClientError, LoginError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.operation import Manifest
from mitm_cache.oci.reference import Repository, Tag
from mitm_cache.policy import Policy, Question, question_of
from mitm_cache.policy.judge import Ruling, tell_denial
from mitm_cache.policy.rule import Rule
from mitm_cache.policy.ruled import denied, rule
from mitm_cache.wire.message import Request

BROWSERS = ("origin", "sec-fetch-site")
"""Headers that browsers send with what may change something, and clients of registries do not."""


class Rights:
    """Asked before anything else."""

    def __init__(self, policy: Policy, *, users: bool) -> None:
        """`users`: whether the cache has any."""
        self._policy = policy
        self._users = users

    def greet(self, request: Request) -> None:
        """Ask a stranger to log in, who may want to push: clients learn from the ping alone how to. Raises LoginError.

        Who has no password goes on with a stranger's token, or without one where there are none.
        """
        if self._users and request.user == "" and not request.bearer:
            raise LoginError("pushing here needs a login as one of this cache's users")

    def check_pull(self, request: Request) -> Ruling:
        """Raises ClientError, or LoginError where a user might be let in."""
        return rule(self._policy, request)

    def check_push(self, request: Request, *, asked: bool = False) -> Ruling:
        """The same of pushing and deleting. What the cache itself has `asked` for is denied by its action alone."""
        question = question_of(request)
        if question is None:
            raise ClientError(f"{request.method} is not for this path", status=405)
        ruling = self._policy.judge(question)
        if not ruling.allowed:
            raise denied(ruling, tell_denial(question, ruling))
        if asked:
            return ruling
        if not ruling.may_fill:
            raise denied(ruling, f"{ruling.rule} lets this client push nothing to {replace(question, reference=None)}")
        if self._users and request.user == "" and not self._is_decided(question):
            where = replace(question, reference=None)
            raise LoginError(f"pushing to {where} needs a login as one of this cache's users")
        if request.user == "":
            check_browser(request)
        return ruling

    def may_push(self, request: Request) -> bool:
        """The same as a question."""
        try:
            self.check_push(request)
        except ClientError:
            return False
        return True

    def may_push_to(self, request: Request, repository: Repository, tag: Tag) -> bool:
        """The same of another tag than the one that a request names."""
        return self.may_push(replace(request, operation=Manifest(repository, tag)))

    def may_pull(self, request: Request, registry: str, repository: Repository, digest: Digest) -> bool:
        """Whether policy gives this client this content of any repository; upstream's rights are another matter."""
        question = Question(
            registry=registry, repository=repository, reference=digest, client=request.client, user=request.user
        )
        return self._policy.judge(question).allowed

    def may_see(self, request: Request, repository: Repository) -> bool:
        """Whether policy lets this client know of a repository here."""
        question = Question(
            registry=request.registry.name,
            repository=repository,
            reference=None,
            client=request.client,
            user=request.user,
        )
        return self._policy.judge(question).allowed

    def _is_decided(self, question: Question) -> bool:
        deciding = [step.rule for step in self._policy.steps(question) if not step.missed]
        return any((row.registry and not _is_about_tags(row)) or not row.fill.anyone for row in deciding)


def check_browser(request: Request) -> None:
    """Raise ClientError where a web page asks, in the name of whoever looks at it: a name of its own may lead here."""
    if any(request.headers.get(name) is not None for name in BROWSERS):
        raise ClientError("a web page changes nothing here without a login", status=403, code="DENIED")


def _is_about_tags(row: Rule) -> bool:
    """Whether a row says what its tags are for who pulls, and by that nothing of who pushes."""
    return row.freeze is not None or row.min_age > 0 or row.tag_ttl is not None
