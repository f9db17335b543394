"""The cache's own credentials: where they are, which one counts, when they are read again."""

import base64
import json
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from mitm_cache.config import load
from mitm_cache.errors import ConfigError
from mitm_cache.oci.reference import Repository
from mitm_cache.registries import Registry
from mitm_cache.upstream import credentials, credentials_helper
from mitm_cache.upstream.credentials import ASK_SECONDS, Credentials, Keeper, Kind, Login, parse_secret
from mitm_cache.upstream.credentials_helper import Helper
from mitm_cache.upstream.credentials_sources import SecretFile, open_credentials
from mitm_cache.upstream.curl import Answer
from mitm_cache.upstream.tokens import Question, Tokens
from mitm_cache.wire.challenge import Bearer
from mitm_cache.wire.headers import Headers
from mitm_cache.wire.redirect import Origin
from tests.clock import Clock
from tests.lab.clients import docker_login

APP = Repository("team/app")
QUAY = Registry("quay.io", "quay.io")
ANN = Login(Kind.PASSWORD, "ann", "anns-password")
SECRETS = ("anns-password", "anns-second", "identity-secret")


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test leaves a secret in the log."""
    with caplog.at_level(logging.DEBUG):
        yield
    assert [secret for secret in SECRETS if secret in caplog.text] == []


def private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def helper(folder: Path, name: str, script: str) -> dict[str, str]:
    """A program `docker-credential-<name>`, and the environment that has it on PATH."""
    folder.mkdir(exist_ok=True)
    program = folder / f"docker-credential-{name}"
    draft = program.with_suffix(".new")
    draft.write_text(f"#!/bin/sh\n{script}\n")
    draft.chmod(0o755)
    draft.replace(program)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def says(user: str, secret: str) -> str:
    return f"cat > /dev/null; echo '{json.dumps({'ServerURL': 'x', 'Username': user, 'Secret': secret})}'"


def opened(folder: Path, rules: str, environ: dict[str, str] | None = None, registry: str = "quay.io") -> Credentials:
    """The credentials that a configuration speaks of."""
    file = folder / "config.toml"
    file.write_text(f'[registries."{registry}"]\ncredentials = {rules}\n')
    return open_credentials(load(file=file, environ={}), environ or {})


def login(found: Credentials, repository: str = "team/app", registry: str = "quay.io") -> Login | None:
    keeper = found.find(registry, Repository(repository))
    return keeper.login() if keeper is not None else None


# The sources.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("ann:anns-password\n", ANN, id="a line"),
        pytest.param("ann:anns-password", ANN, id="no line end"),
        pytest.param("ann:a:b c", Login(Kind.PASSWORD, "ann", "a:b c"), id="a colon and a space in the password"),
        pytest.param("ann:pässword", Login(Kind.PASSWORD, "ann", "pässword"), id="another script"),
        pytest.param("abc.def-0\n", Login(Kind.BEARER, "", "abc.def-0"), id="a token"),
    ],
)
def test_secrets(tmp_path: Path, text: str, expected: Login) -> None:
    """A file and a variable hold user:password, or a token."""
    file = private(tmp_path / "secret", text)
    assert login(opened(tmp_path, f"{{ file = '{file}' }}")) == expected
    assert login(opened(tmp_path, "{ env = 'QUAY' }", {"QUAY": text})) == expected


@pytest.mark.parametrize("text", ["", "\n", ":anns-password", "ann:", "a\nb:anns-password", "to ken", "tokenü", "a\0b"])
def test_no_secrets(text: str) -> None:
    """What is neither is told by its key; it is not shown."""
    with pytest.raises(ConfigError, match="the key holds neither user:password nor a token") as caught:
        parse_secret("the key", text)
    assert not text.strip() or text not in caught.value.message


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
@pytest.mark.parametrize("source", ["file", "docker_config"])
def test_others_may_not_read_it(tmp_path: Path, mode: int, source: str) -> None:
    """A file that is not its owner's alone stops the start; the message tells the cure."""
    file = private(tmp_path / "secret", "ann:anns-password")
    file.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, f"{{ {source} = '{file}' }}")
    assert caught.value.message == (
        f"registries.quay.io.credentials.{source}: {file} has mode {mode:04o}: only its owner may read it "
        f"(chmod 600 {file})"
    )


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("{ file = '/missing' }", "credentials.file: /missing cannot be read: No such file"),
        ("{ docker_config = '/missing' }", "credentials.docker_config: /missing cannot be read: No such file"),
        ("{ env = 'MISSING' }", "credentials.env: there is no variable MISSING in the environment"),
        ("{ helper = 'missing-one' }", "credentials.helper: there is no program docker-credential-missing-one on PATH"),
    ],
)
def test_missing(tmp_path: Path, rules: str, message: str) -> None:
    """What is not there stops the start."""
    with pytest.raises(ConfigError, match=f"^registries.quay.io.{message}"):
        opened(tmp_path, rules, {"PATH": str(tmp_path)})


@pytest.mark.parametrize(
    ("rules", "shown"),
    [
        ("'ann:anns-password'", "credentials is a table such as"),
        ("['ann:anns-password']", "credentials is a table such as"),
        ("{ repository = 'a' }", "credentials: no source in one table; allowed here: repository, and one of"),
        ("{ file = '/a', env = 'A' }", "credentials: file and env in one table"),
        ("{ password = 'anns-password' }", "credentials.password is not a key of this version"),
        ("{ env = 'ann:anns-password' }", "credentials.env is the name of a variable of the environment"),
        ("{ env = 5 }", "credentials.env is the name of a variable"),
        ("{ helper = '../bin/sh' }", "credentials.helper is the X of a program docker-credential-X"),
        ("{ file = 5 }", "credentials.file is a path, not 5"),
        ("{ file = '/a', repository = 'Team/*' }", "credentials.repository: 'Team/*' is not a repository such as"),
        ("{ file = '/a', repository = '' }", "credentials.repository: ''"),
    ],
)
def test_wrong_rules(tmp_path: Path, rules: str, shown: str) -> None:
    """What is wrong in the configuration is told with its key and what is allowed; a password in it is not."""
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, rules)
    assert caught.value.message.startswith(f"registries.quay.io.{shown}")
    assert "anns-password" not in caught.value.message


def test_shared_needs_something_to_share(tmp_path: Path) -> None:
    """Rights that are shared without a credential are a mistake."""
    file = tmp_path / "config.toml"
    file.write_text('[registries."quay.io"]\nrights = "shared"\n')
    with pytest.raises(ConfigError, match=r'^registries.quay.io.rights: "shared" shares the credential of'):
        load(file=file, environ={})


@pytest.mark.parametrize(
    ("registry", "reference"),
    [("quay.io", "quay.io/a"), ("docker.io", "docker.io/a"), ("r.example:5000", "r.example:5000/a")],
)
def test_docker_login(tmp_path: Path, registry: str, reference: str) -> None:
    """What `docker login` leaves is understood, Docker Hub's old name too; another registry's is not taken."""
    docker_login(tmp_path / "docker", reference, "ann:anns-password")
    file = tmp_path / "docker" / "config.json"
    file.chmod(0o600)
    rules = f"{{ docker_config = '{file}' }}"
    assert login(opened(tmp_path, rules, registry=registry), registry=registry) == ANN
    with pytest.raises(ConfigError, match=r"has no credential for ghcr.io: docker login ghcr.io$"):
        opened(tmp_path, rules, registry="ghcr.io")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"auth": "", "identitytoken": "identity-secret"}, Login(Kind.IDENTITY, "", "identity-secret")),
        ({"auth": "YQ==", "registrytoken": "t"}, Login(Kind.BEARER, "", "t")),
    ],
)
def test_tokens_of_docker(tmp_path: Path, entry: dict[str, str], expected: Login) -> None:
    """Tokens that docker keeps go before what it keeps beside them."""
    file = private(tmp_path / "config.json", json.dumps({"auths": {"https://quay.io/v2/": entry}}))
    assert login(opened(tmp_path, f"{{ docker_config = '{file}' }}")) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not JSON as docker login writes it"),
        ("{", "is not JSON as docker login writes it"),
        ("{}", "has no credential for quay.io"),
        ('{"auths": []}', "has no credential for quay.io"),
        ('{"auths": {"quay.io": {}}}', "has no credential for quay.io"),
        ('{"auths": {"quay.io/team": {"auth": "YTpi"}}}', "has no credential for quay.io"),
        ('{"auths": {"quay.io.evil.example": {"auth": "YTpi"}}}', "has no credential for quay.io"),
        ('{"auths": {"quay.io": {"auth": "?"}}}', "not the base64 of user:password"),
        ('{"auths": {"quay.io": {"auth": "YW5u"}}}', "not the base64 of user:password"),
        ('{"auths": {"quay.io": {"registrytoken": "a\\nb"}}}', "has an unprintable registrytoken"),
        ('{"credsStore": "../sh"}', "which is not a plain name"),
        ('{"credHelpers": {"quay.io": "none-such"}}', "there is no program docker-credential-none-such on PATH"),
    ],
)
def test_no_docker_login(tmp_path: Path, content: str, message: str) -> None:
    """A file that holds nothing for the registry stops the start."""
    file = private(tmp_path / "config.json", content)
    with pytest.raises(ConfigError, match=message) as caught:
        opened(tmp_path, f"{{ docker_config = '{file}' }}", {"PATH": str(tmp_path)})
    assert str(file) in caught.value.message or "docker-credential" in caught.value.message


# Helpers.


def test_a_helper(tmp_path: Path) -> None:
    """A helper is run with `get`, is told the server on stdin, and is not run before it is needed."""
    said = tmp_path / "said"
    script = f'echo "$1 $(cat)" >> {said}; echo \'{{"Username": "ann", "Secret": "anns-password"}}\''
    environ = helper(tmp_path / "bin", "x", script)
    for registry, server in (("quay.io", "quay.io"), ("docker.io", "https://index.docker.io/v1/")):
        said.unlink(missing_ok=True)
        found = opened(tmp_path, "{ helper = 'x' }", environ, registry)
        assert not said.exists()
        assert login(found, registry=registry) == ANN
        assert login(found, registry=registry) == ANN
        assert said.read_text() == f"get {server}\n"


@pytest.mark.parametrize("table", [{"credHelpers": {"quay.io": "x"}}, {"credsStore": "x", "auths": {"quay.io": {}}}])
def test_helpers_of_docker(tmp_path: Path, table: dict[str, object]) -> None:
    """Docker's configuration names helpers, for one registry or for all."""
    environ = helper(tmp_path / "bin", "x", says("<token>", "identity-secret"))
    file = private(tmp_path / "config.json", json.dumps(table))
    found = opened(tmp_path, f"{{ docker_config = '{file}' }}", environ)
    assert login(found) == Login(Kind.IDENTITY, "", "identity-secret")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo anns-password; exit 1", "has nothing for quay.io (exit status 1)"),
        ("echo anns-password", "answered no JSON with Username and Secret"),
        ('echo \'{"Username": "ann"}\'', "answered no JSON with Username and Secret"),
        ("echo '[]'", "answered no JSON with Username and Secret"),
        ('echo \'{"Username": "ann", "Secret": 5}\'', "answered no JSON with Username and Secret"),
    ],
)
def test_a_helper_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture, script: str, message: str) -> None:
    """There is no credential then, and one line of the log says why, without what the helper said."""
    found = opened(tmp_path, "{ helper = 'x' }", helper(tmp_path / "bin", "x", script))
    assert login(found) is None
    assert login(found) is None
    [line] = caplog.messages
    assert line.startswith("registries.quay.io.credentials.helper: not used: ")
    assert message in line


def test_a_helper_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended with everything it has started, after its time."""
    monkeypatch.setattr(credentials_helper, "HELPER_SECONDS", 2)  # it has to begin in them
    environ = helper(tmp_path / "bin", "x", f"echo $$ > {tmp_path}/pid; sleep 600 & sleep 600")
    with pytest.raises(ConfigError, match=r"docker-credential-x gave no answer about quay.io in 2 s"):
        Helper("key", "x", "quay.io", environ).read()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_no_shell(tmp_path: Path) -> None:
    """The server's name is data."""
    environ = helper(tmp_path / "bin", "x", says("ann", "anns-password"))
    assert Helper("key", "x", f"$(touch {tmp_path}/run); touch {tmp_path}/run", environ).read() == ANN
    assert not (tmp_path / "run").exists()


# Which one, and when it is read.


def test_the_first_that_covers(tmp_path: Path) -> None:
    """The order of the list decides; a pattern's * stands for / too; another registry has none of it."""
    environ = {"A": "a:1", "B": "b:1", "C": "c:1"}
    rules = [("team/secret", "A"), ("team/*", "B"), ("*/x", "C")]
    text = ", ".join(f"{{ repository = '{pattern}', env = '{name}' }}" for pattern, name in rules)
    found = opened(tmp_path, f"[{text}]", environ)
    users = {
        name: login(found, name) for name in ("team/secret", "team/a/b", "team/x", "a/x", "a/y", "team", "xteam/a")
    }
    assert {name: each.user if each else None for name, each in users.items()} == {
        "team/secret": "a", "team/a/b": "b", "team/x": "b", "a/x": "c", "a/y": None, "team": None, "xteam/a": None,
    }  # fmt: skip
    assert login(found, "team/secret", registry="ghcr.io") is None
    assert found.name("quay.io", Repository("team/a")) != found.name("quay.io", Repository("team/secret"))
    assert found.name("quay.io", Repository("a/y")) == ""


def test_a_file_that_changes(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A new content counts at once; a file that is taken away takes the credential with it, and it may come back."""
    file = private(tmp_path / "secret", "ann:anns-password")
    keeper = Keeper("*", SecretFile("the key", file), clock)
    assert keeper.login() == ANN
    private(tmp_path / "new", "ann:anns-second").replace(file)
    assert keeper.login() == Login(Kind.PASSWORD, "ann", "anns-second")
    file.unlink()
    assert keeper.login() is None
    private(file, "ann:anns-password")
    file.chmod(0o644)
    assert keeper.login() is None
    file.chmod(0o600)
    assert keeper.login() == ANN
    assert [line.partition(f"{file} ")[2] for line in caplog.messages] == [
        "cannot be read: No such file or directory",
        f"has mode 0644: only its owner may read it (chmod 600 {file})",
    ]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_asked_again(tmp_path: Path, clock: Clock) -> None:
    """A helper is asked again when its word was refused, at most once a minute."""
    folder = tmp_path / "bin"
    environ = helper(folder, "x", says("ann", "anns-password"))
    keeper = Keeper("*", Helper("the key", "x", "quay.io", environ), clock)
    assert keeper.login() == ANN
    helper(folder, "x", says("ann", "anns-second"))
    second = Login(Kind.PASSWORD, "ann", "anns-second")
    assert keeper.renew(ANN) is None  # a minute has not passed
    assert keeper.login() == ANN
    clock.now += ASK_SECONDS
    assert keeper.login() == ANN
    assert keeper.renew(ANN) == second
    assert keeper.renew(ANN) == second  # another thread's refusal came later
    assert keeper.login() == second
    clock.now += ASK_SECONDS
    assert keeper.renew(second) is None
    helper(folder, "x", "exit 1")
    clock.now += ASK_SECONDS
    assert keeper.renew(second) is None
    assert keeper.login() is None
    helper(folder, "x", says("ann", "anns-password"))
    assert keeper.login() is None
    clock.now += ASK_SECONDS
    assert keeper.login() == ANN


def test_said_once(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The log says the same of a credential every ten minutes, by its key and pattern."""
    keeper = Keeper("team/*", SecretFile("the key", tmp_path), clock)
    for _ in range(3):
        keeper.tell("refused")
    keeper.tell("other")
    clock.now += credentials.TELL_SECONDS
    keeper.tell("refused")
    words = ("refused", "other", "refused")
    assert caplog.messages == [f"the key (for team/*): {each}" for each in words]


def test_never_printed() -> None:
    """Neither a repr nor a name tells what it is."""
    assert repr(ANN) == "Login(password)"
    assert "ann" not in f"{Question('https://q.example', b'anns-password', ANN.basic)}"
    assert "password" not in ANN.fingerprint
    assert ANN.fingerprint != Login(Kind.BEARER, "ann", "anns-password").fingerprint


# Tokens.

CHALLENGE = Bearer("https://quay.io/auth?a=b#c", "quay.io", "repository:team/app:pull")


def ask_with(found: Login | None, tokens: Tokens, challenge: Bearer = CHALLENGE, given: str = "t") -> Question:
    """The question that a realm is asked."""
    asked: list[Question] = []

    def realm(question: Question) -> Answer:
        asked.append(question)
        return Answer(200, Headers(), Origin.of("https://quay.io"), json.dumps({"token": given}).encode())

    assert tokens.acquire(QUAY, APP, challenge, realm, found) == given
    return asked[0]


def test_tokens_are_apart(clock: Clock) -> None:
    """A stranger's token, and those of two credentials, are not each other's."""
    tokens = Tokens(clock)
    other = Login(Kind.PASSWORD, "ann", "anns-second")
    ask_with(ANN, tokens, given="a")
    assert (tokens.find(QUAY, APP), tokens.find(QUAY, APP, ANN), tokens.find(QUAY, APP, other)) == (None, "a", None)
    ask_with(None, tokens, given="s")
    tokens.drop(QUAY, APP, other)
    assert (tokens.find(QUAY, APP), tokens.find(QUAY, APP, ANN)) == ("s", "a")
    tokens.drop(QUAY, APP, ANN)
    assert (tokens.find(QUAY, APP), tokens.find(QUAY, APP, ANN)) == ("s", None)


def test_a_password_is_a_header(clock: Clock) -> None:
    """A user and a password go to the realm in `Authorization`, not in the address."""
    question = ask_with(ANN, Tokens(clock))
    assert question.authorization == "Basic " + base64.b64encode(b"ann:anns-password").decode()
    assert (question.url, question.form) == (
        "https://quay.io/auth?a=b&scope=repository%3Ateam%2Fapp%3Apull&service=quay.io", b"",
    )  # fmt: skip
    assert ask_with(None, Tokens(clock)) == Question(question.url)


def test_an_identity_token_is_posted(clock: Clock) -> None:
    """An identity token is OAuth 2's refresh token: it goes in a form."""
    question = ask_with(Login(Kind.IDENTITY, "", "identity-secret"), Tokens(clock))
    assert (question.url, question.authorization) == ("https://quay.io/auth?a=b", "")
    assert parse_qs(question.form.decode()) == {
        "grant_type": ["refresh_token"], "refresh_token": ["identity-secret"], "client_id": ["mitm-cache"],
        "service": ["quay.io"], "scope": ["repository:team/app:pull"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scope", "asked"),
    [
        ("repository:team/app:pull,push", "repository:team/app:pull"),
        ("repository:remote-cache/team/app:pull", "repository:remote-cache/team/app:pull"),
        ("registry:catalog:*", "repository:team/app:pull"),
        ("repository:a:pull repository:b:push", "repository:team/app:pull"),
        ("", "repository:team/app:pull"),
    ],
)
def test_tokens_to_pull(clock: Clock, scope: str, asked: str) -> None:
    """Whatever a registry wants, our credential gets it a token to pull."""
    question = ask_with(ANN, Tokens(clock), Bearer("https://quay.io/auth", "", scope))
    assert parse_qs(question.url.partition("?")[2]) == {"scope": [asked]}
