"""Tokens: from whom, for whom, for how long."""

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from mitm_cache.oci.reference import Repository
from mitm_cache.registries import DOCKER_HUB, Registry
from mitm_cache.upstream.curl import Answer
from mitm_cache.upstream.tokens import DEFAULT_SECONDS, MARGIN, Question, Tokens, belongs
from mitm_cache.wire.challenge import Bearer
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.redirect import Origin
from tests.clock import Clock

APP, OTHER = Repository("team/app"), Repository("team/other")
QUAY = Registry("quay.io", "quay.io", aliases=("cdn.quay.io",))
PRIVATE = Registry("r.example:5000", "r.example:5000", auth_hosts=("sso.example", "auth.example:8443"))
CHALLENGE = Bearer("https://auth.docker.io/token", "registry.docker.io", "repository:team/app:pull")


@pytest.mark.parametrize(
    ("realm", "registry", "expected"),
    [
        pytest.param("https://auth.docker.io/token", DOCKER_HUB, True, id="auth host"),
        pytest.param("https://AUTH.docker.io:443/token", DOCKER_HUB, True, id="the same, spelt otherwise"),
        pytest.param("https://quay.io/v2/auth", QUAY, True, id="own host"),
        pytest.param("https://cdn.quay.io/v2/auth", QUAY, True, id="alias"),
        pytest.param("https://r.example:5000/auth", PRIVATE, True, id="own host and port"),
        pytest.param("https://sso.example/auth", PRIVATE, True, id="auth host of a private one"),
        pytest.param("https://auth.example:8443/auth", PRIVATE, True, id="auth host with a port"),
        pytest.param("https://r.example/auth", PRIVATE, False, id="own host, another port"),
        pytest.param("https://auth.example/auth", PRIVATE, False, id="auth host, another port"),
        pytest.param("https://evil.example/token", QUAY, False, id="foreign"),
        pytest.param("https://auth.docker.io/token", QUAY, False, id="another registry's"),
        pytest.param("https://auth.docker.io.evil.example/", DOCKER_HUB, False, id="begins like it"),
        pytest.param("https://evil-auth.docker.io/", DOCKER_HUB, False, id="ends like it"),
        pytest.param("https://auth.docker.io@evil.example/", DOCKER_HUB, False, id="user information"),
        pytest.param("http://auth.docker.io/token", DOCKER_HUB, False, id="in clear"),
        pytest.param("http://169.254.169.254/latest/meta-data", QUAY, False, id="cloud metadata"),
        pytest.param("https://127.0.0.1/", QUAY, False, id="loopback"),
        pytest.param("ftp://quay.io/", QUAY, False, id="another scheme"),
        pytest.param("/token", QUAY, False, id="relative"),
        pytest.param("https://[", QUAY, False, id="no URL"),
        pytest.param("", QUAY, False, id="empty"),
    ],
)
def test_belongs(realm: str, registry: Registry, expected: bool) -> None:
    """A token is asked for only where the registry's tokens come from, by https."""
    assert belongs(realm, registry, Origin.of(f"https://{registry.host}")) is expected


def test_belongs_to_where_it_really_is() -> None:
    """A registry that is reached by another URL may name that as realm, in clear too; but nothing else there."""
    home = Origin.of("http://10.0.0.9:5000/")
    assert belongs("http://10.0.0.9:5000/auth", PRIVATE, home)
    assert not belongs("http://10.0.0.9/auth", PRIVATE, home)
    assert not belongs("https://10.0.0.9:5000/auth", PRIVATE, home)


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    return Tokens(clock)


class Realm:
    """Answers the question for a token, and remembers it."""

    def __init__(self, body: bytes | dict[str, object], status: int = 200) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answer = Answer(status, Headers(), Origin.of("https://auth.docker.io"), content)
        self.asked: list[str] = []
        self.questions: list[Question] = []

    def __call__(self, question: Question) -> Answer:
        self.asked.append(question.url)
        self.questions.append(question)
        return self.answer


def test_the_question(tokens: Tokens) -> None:
    """The realm is asked as the challenge says."""
    realm = Realm({"token": "t"})
    tokens.acquire(DOCKER_HUB, APP, CHALLENGE, realm)
    [url] = realm.asked
    assert url.startswith("https://auth.docker.io/token?")
    assert parse_qs(urlsplit(url).query) == {"service": [CHALLENGE.service], "scope": [CHALLENGE.scope]}


def test_the_question_without_scope(tokens: Tokens) -> None:
    """Where the challenge names no scope, pull of the repository is; a realm's own query stays, its fragment goes."""
    realm = Realm({"token": "t"})
    tokens.acquire(DOCKER_HUB, APP, Bearer("https://auth.docker.io/token?a=b#c", "", ""), realm)
    assert realm.asked == ["https://auth.docker.io/token?a=b&scope=repository%3Ateam%2Fapp%3Apull"]


def test_kept_for_its_repository(tokens: Tokens) -> None:
    """A token is found again for its registry and repository, and nowhere else."""
    assert tokens.find(DOCKER_HUB, APP) is None
    assert tokens.acquire(DOCKER_HUB, APP, CHALLENGE, Realm({"token": "t"})) == "t"
    assert tokens.find(DOCKER_HUB, APP) == "t"
    assert tokens.find(DOCKER_HUB, OTHER) is None
    assert tokens.find(QUAY, APP) is None


def test_dropped(tokens: Tokens) -> None:
    """A token that was refused is not used again; dropping nothing is no error."""
    tokens.acquire(DOCKER_HUB, APP, CHALLENGE, Realm({"token": "t"}))
    tokens.drop(DOCKER_HUB, OTHER)
    assert tokens.find(DOCKER_HUB, APP) == "t"
    tokens.drop(DOCKER_HUB, APP)
    assert tokens.find(DOCKER_HUB, APP) is None


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({}, DEFAULT_SECONDS),
        ({"expires_in": None}, DEFAULT_SECONDS),
        ({"expires_in": 0}, DEFAULT_SECONDS),
        ({"expires_in": 300}, 300),
        ({"expires_in": "300"}, 300),
        ({"expires_in": 120.5}, 120.5),
    ],
)
def test_expiry(tokens: Tokens, clock: Clock, fields: dict[str, object], seconds: float) -> None:
    """A token is used until shortly before its end, and a minute where it does not say."""
    tokens.acquire(DOCKER_HUB, APP, CHALLENGE, Realm({"token": "t", **fields}))
    clock.now = seconds - MARGIN - 0.1
    assert tokens.find(DOCKER_HUB, APP) == "t"
    clock.now += 0.1
    assert tokens.find(DOCKER_HUB, APP) is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param({"token": "t"}, 401, id="refused"),
        pytest.param({"token": "t"}, 500, id="broken"),
        pytest.param({}, 200, id="no token"),
        pytest.param({"token": ""}, 200, id="empty"),
        pytest.param({"token": 5}, 200, id="a number"),
        pytest.param({"token": ["t"]}, 200, id="a list"),
        pytest.param({"token": "a\r\nX-Evil: 1"}, 200, id="line break"),
        pytest.param({"token": "ü"}, 200, id="not ASCII"),
        pytest.param({"token": "t", "expires_in": [5]}, 200, id="no time"),
        pytest.param({"token": "t", "expires_in": 10**400}, 200, id="a time without end"),
        pytest.param(b"", 200, id="nothing"),
        pytest.param(b"[]", 200, id="a list of nothing"),
        pytest.param(b"<html>", 200, id="HTML"),
        pytest.param(b"\xff", 200, id="no text"),
        pytest.param(b"[" * 200_000, 200, id="nested without end"),
    ],
)
def test_no_token(tokens: Tokens, body: bytes | dict[str, object], status: int) -> None:
    """What is no token is none, and is not kept."""
    assert tokens.acquire(DOCKER_HUB, APP, CHALLENGE, Realm(body, status)) is None
    assert tokens.find(DOCKER_HUB, APP) is None


def test_access_token(tokens: Tokens) -> None:
    """The OAuth 2 name of the field is understood too."""
    assert tokens.acquire(DOCKER_HUB, APP, CHALLENGE, Realm({"access_token": "t"})) == "t"


def test_bounded(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory keeps a bounded number, the latest."""
    monkeypatch.setattr("mitm_cache.upstream.tokens.MAX_TOKENS", 3)
    repositories = [Repository(f"r{number}") for number in range(5)]
    for repository in repositories:
        tokens.acquire(DOCKER_HUB, repository, CHALLENGE, Realm({"token": repository.name}))
    found = [tokens.find(DOCKER_HUB, repository) for repository in repositories]
    assert found == [None, None, "r2", "r3", "r4"]
