"""What the operator's policy says to a request, as an error where it says no."""

from mitm_cache.errors import ClientError, LoginError
from mitm_cache.policy.judge import Policy, Ruling, tell_denial, tell_unfilled
from mitm_cache.policy.question import Question, question_of, questions_of
from mitm_cache.wire.message import Request


def rule(policy: Policy, request: Request) -> Ruling:
    """The ruling on a pull. Raises ClientError (DENIED), or LoginError where a user might be let in."""
    question = question_of(request)
    return Ruling() if question is None else _judge(policy, question)


def check(policy: Policy, request: Request) -> None:
    """Raise ClientError where what is passed on as it is, such as a push, is denied, or part of it."""
    for question in questions_of(request):
        _judge(policy, question)


def _judge(policy: Policy, question: Question) -> Ruling:
    ruling = policy.judge(question)
    if not ruling.allowed:
        raise denied(ruling, tell_denial(question, ruling))
    return ruling


def unfilled(ruling: Ruling, request: Request) -> ClientError:
    """The error for a client that may only take what is here, and something is not."""
    return denied(ruling, tell_unfilled(asked(request), ruling))


def asked(request: Request) -> Question:
    """The question that a request for content puts to the policy."""
    question = question_of(request)
    assert question is not None, "no content is asked for"
    return question


def denied(ruling: Ruling, message: str) -> ClientError:
    """The error that says so."""
    return LoginError(message) if ruling.login_helps else ClientError(message, status=403, code="DENIED")
