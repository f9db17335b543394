"""The policy: how rows are read, which one decides, and what follows."""

import re
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitm_cache.config import load
from mitm_cache.errors import ConfigError
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.operation import classify
from mitm_cache.oci.reference import Repository, Tag, parse_reference
from mitm_cache.policy import (
    KEYS,
    Action,
    Fill,
    Policy,
    Question,
    Rule,
    Ruling,
    question_of,
    read_rules,
    tell_denial,
    tell_unfilled,
)
from mitm_cache.registries import DOCKER_HUB, TABLE, Known, Registry
from mitm_cache.wire.message import Request

DIGEST = f"sha256:{'0' * 64}"
KNOWN = Known((*TABLE, Registry("q.example:5000", "q.example:5000", aliases=("old.example",), prefix="q_q")))


def rules(*rows: dict[str, Any]) -> tuple[Rule, ...]:
    return read_rules("policy", list(rows), KNOWN)


def ask(
    repository: str = "library/redis",
    reference: str = "7",
    *,
    registry: str = "docker.io",
    client: str = "10.0.0.21",
    user: str = "",
) -> Question:
    return Question(
        registry=registry,
        repository=Repository(repository) if repository else None,
        reference=parse_reference(reference) if reference else None,
        client=client,
        user=user,
    )


# Reading.


def test_whole_row(tmp_path: Path) -> None:
    """Every key of a row arrives in the configuration."""
    file = tmp_path / "config.toml"
    file.write_text(
        f"""
        [[policy]]
        name = "no-redis"
        repository = ["library/redis", "bitnami/redis*"]
        action = "deny"
        [[policy]]
        registry = "index.docker.io"
        repository = "library/alpine"
        tag = "3.20"
        clients = ["10.0.0.0/8"]
        users = ["*"]
        action = "allow"
        freeze = "{DIGEST}"
        [[policy]]
        fill = ["ci", "loopback", "192.0.2.7"]
        [[policy]]
        registry = "QUAY.io, *.example*"
        min_age = "3d"
        tag_ttl = "90s"
        """
    )
    assert load(file=file, environ={}).policy == (
        Rule(
            number=1, name="no-redis", repository=("library/redis", "bitnami/redis*"), action=Action.DENY
        ),
        Rule(
            number=2,
            registry=("docker.io",),
            repository=("library/alpine",),
            tag=("3.20",),
            clients=(ip_network("10.0.0.0/8"),),
            users=("*",),
            freeze=Digest.parse(DIGEST),
        ),
        Rule(
            number=3,
            fill=Fill(
                anyone=False,
                clients=(ip_network("127.0.0.0/8"), ip_network("::1/128"), ip_network("192.0.2.7/32")),
                users=("ci",),
            ),
        ),
        Rule(number=4, registry=("quay.io", "*.example*"), min_age=259200.0, tag_ttl=90.0),
    )  # fmt: skip


def test_no_rows() -> None:
    """Without a table there are no rows."""
    assert load(file=Path("/dev/null"), environ={}).policy == ()


@pytest.mark.parametrize("name", ["q.example:5000", "old.example", "q_q", "q_q/", "Q.Example:5000"])
def test_registry_names(name: str) -> None:
    """A registry is named by any of its names and by its prefix, as images have it or alone; it is kept by its own."""
    assert rules({"registry": name})[0].registry == ("q.example:5000",)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("12h", 43200), ("1.5d", 129600), ("2w", 1209600), ("0s", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    """Lengths of time have a unit."""
    assert rules({"min_age": text})[0].min_age == seconds


DENY = {"action": "deny"}
FROZEN = {"registry": "docker.io", "repository": "library/redis", "tag": "7", "freeze": DIGEST}
WRONG: list[tuple[object, str, str, str]] = [
    ({"colour": "red"}, "colour is not a key", "", "name, registry, repository, tag, clients, users, action, fill"),
    ({"name": 3}, "name", "3", "64 printable ASCII characters"),
    ({"name": 'a"b'}, "name", "'a\"b'", "quotes excepted"),
    ({"name": " a"}, "name", "' a'", "printable"),
    ({"name": ""}, "name", "''", "printable"),
    ({"registry": "nope.example"}, "registry", "'nope.example'", "known are docker.io, quay.io"),
    ({"registry": ["quay.io", "a b*"]}, "registry", "'a b*'", "such as quay.io"),
    ({"registry": "old.*"}, "registry", "old.example, another name of q.example:5000", "say 'q.example:5000'"),
    ({"registry": []}, "registry", "[]", "leave the key out"),
    ({"registry": 5}, "registry", "5", "list of texts"),
    ({"repository": "Team/*"}, "repository", "'Team/*'", "such as team/app"),
    ({"repository": "te?m"}, "repository", "'te?m'", "such as team/app"),
    ({"repository": "team//app"}, "repository", "'team//app'", "or a pattern with *"),
    ({"repository": ""}, "repository", "''", "leave the key out"),
    ({"registry": "docker.io", "repository": "redis"}, "repository", "'redis'", "'library/redis'"),
    ({"tag": DIGEST}, "tag", DIGEST, "such as 3.20"),
    ({"tag": "-1"}, "tag", "'-1'", "or a pattern with *"),
    ({"tag": "[1-3]"}, "tag", "'[1-3]'", "such as 3.20"),
    ({"clients": "10.0.0.0/33"}, "clients", "'10.0.0.0/33'", "such as 10.0.0.0/8, nor one of loopback, private, any"),
    ({"clients": []}, "clients", "[]", "leave the key out"),
    ({"users": "a:b"}, "users", "'a:b'", "a name of the users file"),
    ({"users": "loopback"}, "users", "'loopback'", "a name of the users file"),
    ({"users": ["10.0.0.0/8"]}, "users", "'10.0.0.0/8'", "nor * for any"),
    ({"users": True}, "users", "True", "list of texts"),
    ({"action": "block"}, "action", "'block'", "allow, deny"),
    ({"action": []}, "action", "[]", "allow, deny"),
    ({"fill": "everyone, 10.0.0.0/40"}, "fill", "'10.0.0.0/40'", "anyone or nobody by itself, a network such as"),
    ({"fill": ["anyone", "ci"]}, "fill", "'anyone'", "by itself"),
    ({"fill": []}, "fill", "[]", "anyone, nobody, or a list"),
    ({"fill": False}, "fill", "False", "list of texts"),
    ({**FROZEN, "freeze": "sha256:12"}, "freeze", "'sha256:12'", "64 lower-case hex digits"),
    ({**FROZEN, "freeze": 5}, "freeze", "5", "sha256, sha512"),
    ({**FROZEN, "tag": "7*"}, "freeze", "tag is 7*", "each without *"),
    ({**FROZEN, "tag": ["7", "8"]}, "freeze", "tag is 7, 8", "one tag"),
    ({**FROZEN, "registry": "*"}, "freeze", "registry is *", "one registry"),
    ({"freeze": DIGEST}, "freeze", "there is no registry", "one registry"),
    ({**FROZEN, "min_age": "3d"}, "min_age", "'3d'", "one of the two"),
    ({**FROZEN, "tag_ttl": "3d"}, "tag_ttl", "'3d'", "one of the two"),
    ({"min_age": 5}, "min_age", "5", "such as 90s, 30m, 12h, 3d or 2w"),
    ({"min_age": "1y"}, "min_age", "'1y'", "such as 90s"),
    ({"tag_ttl": "-1s"}, "tag_ttl", "'-1s'", "such as 90s"),
    ({"tag": "1.*", "fill": "nobody"}, "fill", "'nobody'", "beside tag, and layers have no tag"),
    ({**DENY, "fill": "nobody"}, "fill", "'nobody'", "beside action = 'deny': name, registry, repository, tag"),
    ({**DENY, **FROZEN}, "freeze", DIGEST, "beside action = 'deny'"),
    ({**DENY, "min_age": "1d"}, "min_age", "'1d'", "beside action = 'deny'"),
    ({**DENY, "tag_ttl": "1d"}, "tag_ttl", "'1d'", "beside action = 'deny'"),
]


def test_every_key_can_be_wrong() -> None:
    """The table above holds every key."""
    assert {key.partition(" ")[0] for _, key, _, _ in WRONG} == {*KEYS, "colour"}


@pytest.mark.parametrize(("row", "key", "shown", "allowed"), WRONG)
def test_wrong(row: dict[str, Any], key: str, shown: str, allowed: str) -> None:
    """A mistake is told with its row, its key, its value, and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        rules({}, row)
    assert caught.value.message.startswith(f"policy[2].{key}")
    assert shown in caught.value.message
    assert allowed in caught.value.message


@pytest.mark.parametrize("value", [{}, "deny", [1], [{}, "deny"]])
def test_no_rows_at_all(value: object) -> None:
    """Anything but rows is told."""
    with pytest.raises(ConfigError, match=re.escape("begun by [[policy]]")):
        read_rules("policy", value, KNOWN)


def test_names_are_given_once() -> None:
    """Two rows of one name could not be told apart in an answer."""
    with pytest.raises(ConfigError, match=re.escape("policy[3].name: 'a' is the name of row 1 already")):
        rules({"name": "a"}, {}, {"name": "a"})


values = st.one_of(
    st.text(max_size=8), st.integers(), st.booleans(), st.floats(), st.lists(st.text(max_size=4), max_size=3),
    st.sampled_from(["*", "deny", "allow", "quay.io", "nobody", "3d", DIGEST, "team/app", "any"]),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=4))
def test_any_row(row: dict[str, Any]) -> None:
    """Whatever stands in a row, it is read, and can be asked, or it is told by its key."""
    try:
        [rule] = rules(row)
    except ConfigError as error:
        told = error.message
    else:
        assert isinstance(Policy((rule,)).judge(ask()), Ruling)
        return
    assert re.match(rf"policy\[1\]\.({'|'.join(KEYS)})\b", told)


# Deciding.

LIST = ({"name": "alpine", "repository": "library/alpine", "tag": "3.*"}, {"name": "rest", "action": "deny"})


@pytest.mark.parametrize(
    ("rows", "question", "rule", "allowed"),
    [
        pytest.param((), ask(), "", True, id="no rows"),
        pytest.param(({"repository": "library/nginx", **DENY},), ask(), "", True, id="no match"),
        pytest.param(({"name": "no", "repository": "*/redis", **DENY},), ask(), 'policy "no"', False, id="name"),
        pytest.param(({"tag": "6"}, {"tag": "7", **DENY}), ask(), "policy 2", False, id="number"),
        pytest.param(({"tag": "7"}, {"tag": "7", **DENY}), ask(), "policy 1", True, id="first"),
        pytest.param(({"registry": "quay.io", **DENY},), ask(), "", True, id="another registry"),
        pytest.param(({"registry": "*.io", **DENY},), ask(), "policy 1", False, id="registry by pattern"),
        pytest.param(({"repository": "lib*", **DENY},), ask(), "policy 1", False, id="* crosses slashes"),
        pytest.param(({"repository": "library", **DENY},), ask(), "", True, id="no pattern, no prefix"),
        pytest.param(({"tag": ["6", "7*"], **DENY},), ask(), "policy 1", False, id="one of two tags"),
        pytest.param(({"tag": "latest", **DENY},), ask(reference="LATEST"), "", True, id="tags have a case"),
        pytest.param(({"clients": "10.0.0.0/8", **DENY},), ask(), "policy 1", False, id="network"),
        pytest.param(({"clients": "10.0.0.0/8", **DENY},), ask(client="::ffff:10.0.0.2"), "policy 1", False, id="v4"),
        pytest.param(({"clients": "10.0.0.0/8", **DENY},), ask(client="192.0.2.1"), "", True, id="other network"),
        pytest.param(({"clients": "fe80::/10", **DENY},), ask(client="fe80::1%eth0"), "policy 1", False, id="zone"),
        pytest.param(({"clients": "any", **DENY},), ask(client="10.0.0.21"), "policy 1", False, id="any network"),
        pytest.param(({"users": "ann", **DENY},), ask(user="ann"), "policy 1", False, id="user"),
        pytest.param(({"users": "ann", **DENY},), ask(user="bob"), "", True, id="another user"),
        pytest.param(({"users": "*", **DENY},), ask(user="bob"), "policy 1", False, id="any user"),
        pytest.param(({"users": "*", **DENY},), ask(), "", True, id="a stranger is no user"),
        pytest.param(LIST, ask("library/alpine", "3.20"), 'policy "alpine"', True, id="list: tag"),
        pytest.param(LIST, ask("library/alpine", "2.7"), 'policy "rest"', False, id="list: another tag"),
        pytest.param(LIST, ask("library/alpine", DIGEST), 'policy "alpine"', True, id="list: layer"),
        pytest.param(LIST, ask("library/alpine", ""), 'policy "alpine"', True, id="list: tags of it"),
        pytest.param(LIST, ask("library/redis", DIGEST), 'policy "rest"', False, id="list: another layer"),
        pytest.param(LIST, ask("", ""), 'policy "rest"', False, id="list: catalog"),
        pytest.param(({"tag": "7", **DENY},), ask(reference=DIGEST), "", True, id="denied tag: layer"),
        pytest.param(({"tag": "7", **DENY},), ask(reference=""), "", True, id="denied tag: repository"),
        pytest.param(({"tag": "7", **DENY},), ask("", ""), "", True, id="denied tag: registry"),
        pytest.param(({"tag": "7"}, DENY), ask("", ""), "policy 2", False, id="allowed tag: registry"),
        pytest.param(({"repository": "*", **DENY},), ask("", ""), "", True, id="denied repositories: registry"),
        pytest.param(({"repository": "*", **DENY},), ask(reference=""), "policy 1", False, id="denied: repository"),
    ],
)  # fmt: skip
def test_first_match(rows: tuple[dict[str, Any], ...], question: Question, rule: str, allowed: bool) -> None:
    """The first row that matches decides, and is named; without one everything is allowed."""
    ruling = Policy(rules(*rows)).judge(question)
    assert (ruling.rule, ruling.allowed, ruling.may_fill) == (rule, allowed, allowed)


@pytest.mark.parametrize(
    ("fill", "who", "may_fill"),
    [
        ("anyone", {}, True),
        ("nobody", {"user": "ann", "client": "127.0.0.1"}, False),
        (["192.0.2.0/24", "ci"], {}, False),
        (["192.0.2.0/24", "ci"], {"user": "ann"}, False),
        (["192.0.2.0/24", "ci"], {"user": "ci"}, True),
        (["192.0.2.0/24", "ci"], {"client": "192.0.2.9"}, True),
        ("*", {"user": "ann"}, True),
        ("*", {}, False),
    ],
)
def test_fill(fill: object, who: dict[str, str], may_fill: bool) -> None:
    """What is cached is for everybody whom the row allows; what is not is fetched for some."""
    for reference in ("7", DIGEST, ""):
        ruling = Policy(rules({"fill": fill})).judge(ask(reference=reference, **who))
        assert (ruling.rule, ruling.allowed, ruling.may_fill) == ("policy 1", True, may_fill)


def test_what_is_about_tags() -> None:
    """A tag is frozen, waits, or has a time of its own; content by digest never changes."""
    policy = Policy(rules(FROZEN, {"min_age": "1d", "tag_ttl": "1h"}))
    assert policy.judge(ask()) == Ruling(rule="policy 1", freeze=Digest.parse(DIGEST))
    assert policy.judge(ask(reference=DIGEST)) == Ruling(rule="policy 1")
    assert policy.judge(ask(reference="8")) == Ruling(rule="policy 2", min_age=86400.0, tag_ttl=3600.0)
    assert policy.judge(ask("library/nginx", DIGEST)) == Ruling(rule="policy 2")


ANN = {"users": "ann"}


@pytest.mark.parametrize(
    ("rows", "user", "helps"),
    [
        pytest.param((DENY,), "", False, id="denied to all"),
        pytest.param((ANN, DENY), "", True, id="a user before"),
        pytest.param((ANN, DENY), "bob", False, id="logged in already"),
        pytest.param(({"users": "*"}, DENY), "", True, id="any user"),
        pytest.param((DENY, ANN), "", False, id="a user too late"),
        pytest.param(({**ANN, "repository": "x"}, DENY), "", False, id="a user of something else"),
        pytest.param(({**ANN, **DENY}, DENY), "", False, id="a user who is denied too"),
        pytest.param(({**ANN, **DENY}, {"users": "*"}, DENY), "", True, id="anybody but ann"),
        pytest.param(({**ANN, **DENY}, ANN, DENY), "", False, id="nobody but ann, and she is denied"),
        pytest.param(({"fill": "ann"},), "", True, id="a user fills"),
        pytest.param(({"fill": "nobody"},), "", False, id="nobody fills"),
        pytest.param(({**ANN, **DENY}, {"fill": "ann"}), "", False, id="who fills is denied"),
        pytest.param((ANN, {"fill": "nobody"}), "", True, id="a user's own row"),
        pytest.param((), "", False, id="all is allowed"),
    ],
)
def test_login_helps(rows: tuple[dict[str, Any], ...], user: str, helps: bool) -> None:
    """A stranger is told to log in where that would change something for the better."""
    assert Policy(rules(*rows)).judge(ask(user=user)).login_helps is helps


def test_words() -> None:
    """What clients read names the row and what they wanted; who may log in is told so."""
    policy = Policy(rules({"name": "ci", "users": "ci"}, {"name": "no-redis", "repository": "*/redis", **DENY}))
    question = ask()
    words = tell_denial(question, policy.judge(question))
    assert words.startswith('policy "no-redis" denies docker.io/library/redis:7; who logs in')
    unfilled = Policy(rules({"fill": "nobody"})).judge(question)
    layer = ask(reference=DIGEST)
    assert tell_unfilled(layer, unfilled) == (
        f"policy 1 fetches nothing for this client, and docker.io/library/redis@{DIGEST} is not cached"
    )
    assert str(ask(reference="")) == "docker.io/library/redis"
    assert str(ask("", "")) == "docker.io"


def test_steps() -> None:
    """The rows before the one that decides are told with the first key that does not match."""
    first = {"registry": "quay.io", "repository": "x", "tag": "x"}
    rows = (first, {"repository": "x", "tag": "x"}, {"tag": "x", "clients": "loopback"}, {"clients": "loopback"}, ANN)
    policy = Policy(rules(*rows, {}, DENY))
    assert [(step.rule.number, step.missed) for step in policy.steps(ask())] == [
        (1, "registry"),
        (2, "repository"),
        (3, "tag"),
        (4, "clients"),
        (5, "users"),
        (6, ""),
    ]


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/v2/", None),
        ("/token", None),
        ("/v2/library/redis/manifests/7", "docker.io/library/redis:7"),
        (f"/v2/library/redis/manifests/{DIGEST}", f"docker.io/library/redis@{DIGEST}"),
        (f"/v2/library/redis/blobs/{DIGEST}", f"docker.io/library/redis@{DIGEST}"),
        (f"/v2/library/redis/referrers/{DIGEST}", "docker.io/library/redis"),
        ("/v2/library/redis/tags/list", "docker.io/library/redis"),
        ("/v2/library/redis/blobs/uploads/", "docker.io/library/redis"),
        ("/v2/_catalog", "docker.io"),
    ],
)
def test_requests(path: str, wanted: str | None) -> None:
    """Every request has its question, and pings and logins have none."""
    request = Request(
        listener="tls", client="10.0.0.21", method="GET", registry=DOCKER_HUB, operation=classify(path), target=path,
        user="ann",
    )  # fmt: skip
    question = question_of(request)
    assert (None if question is None else str(question)) == wanted
    assert question is None or (question.client, question.user) == ("10.0.0.21", "ann")


# Against an oracle that is as naive as can be.

_NAMES = ["*", "a/b", "a/*", "*b", "a*b", "*/*", "x*", "x/y"]
_TAGS = ["*", "1", "1.*", "*2", "x"]
rows = st.fixed_dictionaries(
    {},
    optional={
        "registry": st.sampled_from(["docker.io", "quay.io", "*", "*.io", "gcr.*"]),
        "repository": st.lists(st.sampled_from(_NAMES), min_size=1, max_size=2),
        "tag": st.lists(st.sampled_from(_TAGS), min_size=1, max_size=2),
        "clients": st.sampled_from(["10.0.0.0/8", "any", "192.0.2.1"]),
        "users": st.lists(st.sampled_from(["ann", "bob", "*"]), min_size=1, max_size=2),
        "action": st.sampled_from(["allow", "deny"]),
    },
)  # fmt: skip
fills = st.sampled_from(["anyone", "nobody", ["ann"], ["10.0.0.0/8"], ["*"], ["bob", "192.0.2.1"]])
questions = st.builds(
    ask,
    st.sampled_from(["a/b", "a/c/b", "x/y", "b/a", ""]),
    st.sampled_from(["1", "1.2", "x", DIGEST, ""]),
    registry=st.sampled_from(["docker.io", "quay.io", "mcr.microsoft.com"]),
    client=st.sampled_from(["10.1.2.3", "192.0.2.1", "2001:db8::1"]),
    user=st.sampled_from(["", "ann", "bob", "cy"]),
).filter(lambda question: question.repository is not None or question.reference is None)


def glob(pattern: str, text: str) -> bool:
    """Matching by recursion: `*` takes nothing, or one character and goes on."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return glob(pattern[1:], text) or (bool(text) and glob(pattern, text[1:]))
    return bool(text) and text[0] == pattern[0] and glob(pattern[1:], text[1:])


def within(networks: object, client: str) -> bool:
    table = {"10.0.0.0/8": ["10.1.2.3"], "192.0.2.1": ["192.0.2.1"], "any": ["10.1.2.3", "192.0.2.1", "2001:db8::1"]}
    return any(client in table.get(name, []) for name in ([networks] if isinstance(networks, str) else list(networks)))  # type: ignore[call-overload]


def concerns(row: dict[str, Any], question: Question) -> bool:
    """Whether a row, as it is written, is about a question."""
    if "registry" in row and not glob(row["registry"], question.registry):
        return False
    if {"repository", "tag"} & set(row) and question.repository is None:
        return False
    if "repository" in row and not any(glob(pattern, str(question.repository)) for pattern in row["repository"]):
        return False
    if "tag" in row and isinstance(question.reference, Tag):
        if not any(glob(pattern, question.reference.name) for pattern in row["tag"]):
            return False
    elif "tag" in row and row.get("action") == "deny":
        return False
    if "clients" in row and not within(row["clients"], question.client):
        return False
    return "users" not in row or (question.user != "" and (question.user in row["users"] or "*" in row["users"]))


@given(st.lists(st.tuples(rows, fills), max_size=6), questions)
def test_oracle(table: list[tuple[dict[str, Any], object]], question: Question) -> None:
    """The first row that is about a question decides, for strangers and for users."""
    table = [
        (row, "anyone") if row.get("action") == "deny" or "tag" in row else ({**row, "fill": fill}, fill)
        for row, fill in table
    ]
    policy = Policy(rules(*(row for row, _ in table)))

    def expected(question: Question) -> tuple[str, bool, bool]:
        for number, (row, fill) in enumerate(table, 1):
            if concerns(row, question):
                if row.get("action") == "deny":
                    return f"policy {number}", False, False
                user = question.user
                listed = isinstance(fill, list) and (
                    (user != "" and (user in fill or "*" in fill)) or within(fill, question.client)
                )
                return f"policy {number}", True, fill == "anyone" or listed
        return "", True, True

    ruling = policy.judge(question)
    found = ruling.rule, ruling.allowed, ruling.may_fill
    assert found == expected(question)
    better = any(expected(replace(question, user=user))[1:] > found[1:] for user in ("ann", "bob", "somebody"))
    assert ruling.login_helps is (question.user == "" and better)
    steps = list(policy.steps(question))
    assert [step.missed == "" for step in steps] == [False] * (len(steps) - 1) + [ruling.rule != ""] * bool(steps)


@given(
    st.text("ab/*", min_size=1, max_size=6).filter(lambda text: "*" in text),
    st.text("ab/", min_size=1, max_size=8),
)
def test_patterns(pattern: str, name: str) -> None:
    """In a pattern `*` stands for any characters, and every other one for itself."""
    rule = rules({"repository": pattern, **DENY})
    question = replace(ask(), repository=Repository(name))
    assert Policy(rule).judge(question).allowed is not glob(pattern, name)
