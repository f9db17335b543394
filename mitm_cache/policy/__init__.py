"""The operator's policy: rows of one table, of which the first that matches a request decides. No I/O."""

from mitm_cache.policy.judge import Policy, Ruling, Step, tell_denial, tell_unfilled
from mitm_cache.policy.question import Question, question_of, questions_of
from mitm_cache.policy.rule import Action, Fill, Rule
from mitm_cache.policy.table import KEYS, read_rules

__all__ = [
    "KEYS",
    "Action",
    "Fill",
    "Policy",
    "Question",
    "Rule",
    "Ruling",
    "Step",
    "question_of",
    "questions_of",
    "read_rules",
    "tell_denial",
    "tell_unfilled",
]
