"""The decision: the first row that matches, what follows from it, and the words for it. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Tag
from mitm_cache.policy.question import Question
from mitm_cache.policy.rule import Action, Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What the policy says: `rule` is the row's name for people, "" where none matched and all is allowed.

    `may_fill`: what is not cached may be fetched for this client. `freeze`, `min_age` and `tag_ttl` (seconds) are about
    a tag, and are given for one only. `login_helps`: it would be better for a user than it is for this stranger.
    """

    rule: str = ""
    allowed: bool = True
    may_fill: bool = True
    freeze: Digest | None = None
    min_age: float = 0.0
    tag_ttl: float | None = None
    login_helps: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One row as it was looked at: `missed` is the first key that did not match, "" where the row decided."""

    rule: Rule
    missed: str


class Policy:
    """All rows, in their order."""

    __slots__ = ("_rules", "_users")

    def __init__(self, rules: tuple[Rule, ...] = ()) -> None:
        self._rules = rules
        # Of those whom no row names one is enough to ask about: *, who is in a list only where that takes any user.
        self._users = tuple({name: None for rule in rules for name in (*rule.users, *rule.fill.users)})

    def judge(self, question: Question) -> Ruling:
        """What the first row that matches says; without one everything is allowed."""
        ruling = self._rule(question)
        if question.user == "" and not (ruling.allowed and ruling.may_fill):
            asked = (self._rule(replace(question, user=user)) for user in self._users)
            if any((one.allowed, one.may_fill) > (ruling.allowed, ruling.may_fill) for one in asked):
                return replace(ruling, login_helps=True)
        return ruling

    def names_users(self, registry: str | None) -> bool:
        """Whether for some of a registry's requests, or of any registry's, it matters which user asks."""
        rules = (rule for rule in self._rules if rule.users or rule.fill.users)
        return any(registry is None or rule.is_about(registry) for rule in rules)

    def steps(self, question: Question) -> Iterator[Step]:
        """The rows that are looked at, up to and with the one that decides."""
        for rule in self._rules:
            missed = rule.miss(question)
            yield Step(rule, missed)
            if not missed:
                return

    def _rule(self, question: Question) -> Ruling:
        rule = next((rule for rule in self._rules if not rule.miss(question)), None)
        if rule is None:
            return _DEFAULT
        if rule.action is Action.DENY:
            return Ruling(rule=str(rule), allowed=False, may_fill=False)
        may_fill = rule.fill.takes(question)
        if not isinstance(question.reference, Tag):
            return Ruling(rule=str(rule), may_fill=may_fill)
        return Ruling(rule=str(rule), may_fill=may_fill, freeze=rule.freeze, min_age=rule.min_age, tag_ttl=rule.tag_ttl)


_DEFAULT = Ruling()


def tell_denial(question: Question, ruling: Ruling) -> str:
    """What a client reads that is denied something."""
    return f"{ruling.rule} denies {question}{_hint(ruling)}"


def tell_unfilled(question: Question, ruling: Ruling) -> str:
    """What a client reads that wants what is not cached, and for which nothing is fetched."""
    return f"{ruling.rule} fetches nothing for this client, and {question} is not cached{_hint(ruling)}"


def _hint(ruling: Ruling) -> str:
    return "; who logs in to the cache as one of its users may be let in" if ruling.login_helps else ""
