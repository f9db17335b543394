"""`mitm-cache why`, over a data directory that real pulls have filled."""

import json
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mitm_cache.cache.heard import Heard
from mitm_cache.cli import main
from mitm_cache.demo.image import KIB, Image, generate
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Repository, Tag
from tests.fakes.registry import LyingUpstream
from tests.lab.process import wait_until
from tests.serving import Threaded, in_thread, settings

AMD, ARM = "linux/amd64", "linux/arm64"
APP = "team/app"


@pytest.fixture(scope="module")
def image() -> Image:
    return generate(sizes=[20 * KIB, 30 * KIB], platforms=[AMD, ARM])


class Why:
    """The command with a configuration of the cache's, and more."""

    def __init__(self, folder: Path, upstream: LyingUpstream) -> None:
        self._folder, self._upstream = folder, upstream
        self.app = f"{upstream.registry.name}/{APP}:1"

    def __call__(self, *arguments: str, more: str = "", keys: str = "") -> Result:
        return CliRunner().invoke(main, ["--config", str(self._configure(more, keys)), "why", *arguments])

    def command(self, *arguments: str) -> None:
        """Another command with the same configuration; it has to succeed."""
        result = CliRunner().invoke(main, ["--config", str(self._configure("", "")), *arguments])
        assert result.exit_code == 0, result.output

    def _configure(self, more: str, keys: str) -> Path:
        file, head = self._folder / "why.toml", f'[registries."{self._upstream.registry.name}"]\n'
        text = settings(self._folder / "data", self._upstream, more=more)
        assert head in text
        file.write_text(text.replace(head, f"{head}{keys}\n"))
        return file

    def json(self, *arguments: str, more: str = "", keys: str = "") -> dict[str, Any]:
        result = self(*arguments, "--json", more=more, keys=keys)
        document: dict[str, Any] = json.loads(result.output)
        assert result.exit_code == (0 if document["served"] else 1)
        return document


@pytest.fixture
def why(tmp_path: Path, upstream: LyingUpstream) -> Why:
    return Why(tmp_path, upstream)


def rows(result: Result) -> dict[str, str]:
    """The words behind each label."""
    return {line[:11].strip(): line[12:] for line in result.output.splitlines() if line[:11].strip()}


def seen(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder there is, with its time and size."""
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_nothing_yet(why: Why, tmp_path: Path) -> None:
    """Where there is no data directory yet it tells the rest, and makes none."""
    result = why("alpine")
    assert result.exit_code == 0
    assert rows(result) == {
        "image": "docker.io/library/alpine:latest",
        "registry": "docker.io at https://registry-1.docker.io, without a proxy",
        "rights": "client: each client has what the registry lets it have",
        "credential": "none of the cache's own",
        "client": "127.0.0.1 (assumed; --client names another)",
        "user": "none (--user names one)",
        "policy": "allowed, since no row matches, may fill the cache",
        "cached": "nothing is known of it",
        "verdict": "served: it is not in the cache, and is fetched from upstream",
    }
    assert not (tmp_path / "data").exists()


def test_cached(cache: Threaded, why: Why, image: Image) -> None:
    """After a pull it tells the digest, its type, and each platform's blobs; the running cache is not disturbed."""
    lines = len(cache.puller().pull(APP, "1").requests)
    cache.log.wait(lines)
    wait_until(lambda: why.json(why.app)["contents"][0]["asked"] != "", "the index's word on the tag")
    before = seen(cache.data / "blobs") | seen(cache.data / "links")
    document = why.json(why.app, "--client", "127.0.0.9")
    assert seen(cache.data / "blobs") | seen(cache.data / "links") == before
    [content] = document["contents"]
    assert (content["digest"], content["media_type"]) == (image.index.digest, image.index.media_type)
    assert (content["cached"], content["size"]) == (True, len(image.index.body))
    assert (content["origin"], content["rights_mean"]) == ("pulled", "")
    assert content["since"] <= content["asked"]
    assert content["used"]
    sizes = {each.digest: sum(part["size"] for part in _refers(each.body)) for each in image.platforms.values()}
    assert content["parts"] == [
        {"digest": each.digest, "platform": name, "cached": True, "blobs": 3, "blobs_cached": 3,
         "size": sizes[each.digest], "size_cached": sizes[each.digest]}
        for name, each in image.platforms.items()
    ]  # fmt: skip
    assert document["reason"] == f"all of {AMD}, {ARM} is in the cache"
    assert (document["client"], document["client_assumed"]) == ("127.0.0.9", False)
    assert len(cache.log.select()) == lines
    by_digest = why.json(f"{why.app}@{image.platforms[ARM].digest}")
    assert [part["blobs_cached"] for part in by_digest["contents"][0]["parts"]] == [3]


def _refers(body: bytes) -> list[dict[str, Any]]:
    document = json.loads(body)
    return [document["config"], *document["layers"]]


@pytest.mark.parametrize("word", ["synced", "imported"])
def test_put_here(tmp_path: Path, why: Why, upstream: LyingUpstream, image: Image, word: str) -> None:
    """For what the operator has put here no right is asked, and so it stays when a client pulls it."""
    data, wanted, carried = tmp_path / "data", tmp_path / "images", tmp_path / "carried"
    wanted.write_text(f"{why.app}\n")
    why.command("sync", "-f", str(wanted))
    if word == "imported":
        why.command("export", "--all", "-o", str(carried))
        shutil.rmtree(data)
        why.command("import", str(carried))
    with in_thread(data, upstream) as cache:
        assert cache.puller().pull(APP, "1").digest == image.index.digest
    means = f"{word} by the operator: the policy alone says who may have it, and no right is asked upstream"
    for name in (why.app, f"{why.app}@{image.index.digest}"):
        [content] = why.json(name)["contents"]
        assert (content["cached"], content["origin"], content["rights_mean"]) == (True, word, means)
        assert means in why(name).output


def test_partly_cached(cache: Threaded, why: Why, image: Image) -> None:
    """What a node of one platform has pulled is one platform."""
    cache.log.wait(len(cache.puller().pull(APP, "1", platforms=[AMD]).requests))
    result = why(why.app)
    assert result.exit_code == 0
    assert f"{AMD}: 3 of 3 blobs" in result.output
    assert f"{ARM}: its manifest is not cached" in result.output
    assert rows(result)["verdict"] == f"served: all of {AMD} is in the cache"
    only = f'[[policy]]\nname = "ci"\nfill = "nobody"\nrepository = "{APP}"'
    assert rows(why(why.app, more=only))["verdict"].endswith(f"{AMD} is in the cache; what is not cached is refused")
    layer = image.platforms[AMD].body
    lost = json.loads(layer)["layers"][0]["digest"].partition(":")[2]
    next((cache.data / "blobs").rglob(lost)).unlink()
    result = why(why.app)
    assert f"{AMD}: 2 of 3 blobs" in result.output
    assert rows(result)["verdict"] == "served: a part is in the cache, and the rest is fetched from upstream"
    result = why(why.app, more=only)
    assert result.exit_code == 1
    assert (
        rows(result)["verdict"] == f'refused: policy "ci" fetches nothing for this client, and {why.app} is not cached'
    )


def test_moved(tmp_path: Path, why: Why, upstream: LyingUpstream, image: Image) -> None:
    """A tag that has moved is what upstream said last, and the file of what it was before does not hide it."""
    newer = generate(sizes=[KIB], platforms=[AMD], seed="newer")
    with in_thread(tmp_path / "data", upstream, more='[[policy]]\ntag_ttl = "0s"\n') as cache:
        cache.puller().pull(APP, "1")
        upstream.registry.put(APP, newer, "1")
        assert cache.puller().pull(APP, "1").digest == newer.index.digest
    contents = why.json(why.app)["contents"]
    assert contents[0]["digest"] == newer.index.digest
    assert all(part["blobs_cached"] == part["blobs"] for part in contents[0]["parts"])
    assert {content["digest"] for content in contents} <= {newer.index.digest, image.index.digest}


def test_evicted(cache: Threaded, why: Why, image: Image) -> None:
    """A tag is known longer than its manifest is kept."""
    cache.log.wait(len(cache.puller().pull(APP, "1").requests))
    next((cache.data / "blobs").rglob(image.index.digest.partition(":")[2])).unlink()
    result = why(why.app)
    assert rows(result)["not cached"].startswith(image.index.digest)
    assert rows(result)["verdict"] == "served: it is not in the cache, and is fetched from upstream"


POLICY = f"""
[[policy]]
registry = "quay.io"
[[policy]]
name = "no-2"
repository = "{APP}"
tag = "2*"
action = "deny"
[[policy]]
name = "team"
repository = "team/*"
users = ["ann", "bob"]
tag_ttl = "90m"
min_age = "3d"
[[policy]]
clients = "192.168.0.0/16"
fill = "nobody"
[[policy]]
name = "rest"
action = "deny"
"""


def test_denied(why: Why) -> None:
    """Every row that was looked at is told, with the key that did not match, and what a login would change."""
    result = why(why.app, more=POLICY)
    assert result.exit_code == 1
    told = [line[12:] for line in result.output.splitlines() if "match" in line]
    assert told == [
        "policy 1: registry does not match",
        'policy "no-2": tag does not match',
        'policy "team": users does not match',
        "policy 4: clients does not match",
        'policy "rest": matches',
    ]
    assert "denied, a user of the users file is better off" in result.output
    assert rows(result)["verdict"].startswith(f'refused: policy "rest" denies {why.app}; who logs in')


def test_user(why: Why) -> None:
    """A user has the user's row; a tag that has to be known for some time is not at first."""
    result = why(why.app, "--user", "ann", more=POLICY)
    assert result.exit_code == 1
    assert rows(result)["user"] == "ann"
    assert "allowed, may fill the cache, a digest is served once it has been known for 3d" in result.output
    assert "a tag is asked for again after 90m" in result.output
    verdict = f'refused: policy "team" has {why.app} wait for 3d from when this cache first hears of it'
    assert rows(result)["verdict"] == verdict
    assert "tag" in why.json(why.app, "--user", "ann", more=POLICY)["steps"][1]["missed"]


def test_offline(cache: Threaded, why: Why) -> None:
    """A registry that is offline has what is cached."""
    cache.log.wait(len(cache.puller().pull(APP, "1", platforms=[AMD]).requests))
    result = why(why.app, keys="offline = true")
    assert result.exit_code == 0
    assert rows(result)["verdict"] == f"served: all of {AMD} is in the cache; what is not cached is refused"
    other = why.app.replace("app", "other")
    result = why(other, keys="offline = true")
    assert result.exit_code == 1
    assert f"is offline by configuration, and {other} is not cached" in rows(result)["verdict"]


DAY = 86400.0
WAIT = '[[policy]]\nmin_age = "3d"\n'


def test_minimum_age(why: Why, cache: Threaded, image: Image) -> None:
    """What the tag was heard to be lately waits until it is old enough; what it was before is served."""
    cache.log.wait(len(cache.puller().pull(APP, "1").requests))
    tag = next((cache.data / "links").rglob("_tags/1/*"))
    heard = tag.parents[2] / "_heard" / "1"
    shutil.rmtree(heard, ignore_errors=True)
    # The index has its own word on when upstream said so, which may be of the second before: the earlier one counts.
    os.utime(tag, (time.time() - 3600, time.time() - 3600))
    result = why(why.app, more=WAIT)
    assert result.exit_code == 1
    ready = datetime.fromtimestamp(tag.stat().st_mtime + 3 * DAY, UTC).isoformat(timespec="seconds")
    assert rows(result)["verdict"] == f"refused: policy 1 has {why.app} wait until {ready}"
    assert rows(result)["cached"].endswith(f", to be had from {ready}")
    age(cache, 4 * DAY, Digest.parse(image.index.digest))
    assert why.json(why.app, more=WAIT)["served"] is True
    newer = Digest.of(b"newer")
    age(cache, DAY, newer)
    document = why.json(why.app, more=WAIT)
    assert [content["digest"] for content in document["contents"]] == [str(newer), image.index.digest]
    since, until = (datetime.fromisoformat(document["contents"][0][key]) for key in ("since", "ready"))
    assert (until - since, document["contents"][1]["ready"]) == (timedelta(days=3), "")
    assert document["reason"] == f"all of {AMD}, {ARM} is in the cache"


def age(cache: Threaded, seconds: float, digest: Digest) -> None:
    """Have the cache heard of a digest of the tag so long ago."""
    heard = Heard(cache.data / "links", clock=lambda: time.time() - seconds)
    heard.age(cache.registry, Repository(APP), Tag("1"), digest)


def test_client(why: Why) -> None:
    """A client has the rows of its network, and none outside clients.allow."""
    document = why.json(why.app, "--client", "192.168.7.7", more=POLICY)
    assert document["policy"]["may_fill"] is False
    assert document["reason"].startswith("policy 4 fetches nothing for this client")
    assert why.json(why.app, "--client", "8.8.8.8")["reason"] == "8.8.8.8 is not in clients.allow"


def test_frozen(cache: Threaded, why: Why, image: Image) -> None:
    """A frozen tag is the digest that it is frozen at, whatever the tag has been."""
    cache.log.wait(len(cache.puller().pull(APP, "1").requests))
    frozen = image.platforms[ARM].digest
    row = f'[[policy]]\nregistry = "{cache.registry}"\nrepository = "{APP}"\ntag = "1"\nfreeze = "{frozen}"'
    document = why.json(why.app, more=row)
    assert [content["digest"] for content in document["contents"]] == [frozen]
    assert f"frozen at {frozen}" in why(why.app, more=row).output


def test_way(why: Why, tmp_path: Path) -> None:
    """The proxy is told without its password, and the cache's credential by its name, without being read."""
    keys = f"""
proxy = "http://robot:hush@proxy.example:3128"
rights = "shared"
credentials = [{{ repository = "team/*", file = "{tmp_path / "no-such-file"}" }}, {{ env = "SECRET_NAME" }}]
"""
    result = why(why.app, keys=keys)
    host = why.app.partition("/")[0]
    assert rows(result)["registry"].endswith(", by the proxy http://proxy.example:3128")
    assert rows(result)["rights"] == "shared: a client without a credential has what the cache's own may have"
    assert rows(result)["credential"] == f"registries.{host}.credentials.file (for team/*)"
    assert why.json(f"{host}/other:1", keys=keys)["way"]["credential"] == f"registries.{host}.credentials.env"
    for secret in ("hush", "no-such-file", "SECRET_NAME"):
        assert secret not in result.output


def test_unknown_registry(why: Why) -> None:
    """A registry that is none of this cache's is refused as it would be."""
    result = why("nowhere.example/app")
    assert result.exit_code == 1
    assert rows(result)["verdict"].startswith("refused: nowhere.example is not a registry that this cache serves")
    assert why.json("nowhere.example/app")["way"] is None


def test_an_image_of_ones_own(why: Why) -> None:
    """Without a registry of its own the cache tells how it gets one; with a daemon, that it is asked."""
    assert "local.names of its configuration adds one" in rows(why("local/app:1"))["verdict"]
    more = '[local]\nnames = ["localhost:5000"]\ndaemon = "unix:///nowhere.sock"\n'
    words = rows(why("localhost:5000/app:1", more=more))["verdict"]
    assert words.endswith("to the local registry; the daemon at unix:///nowhere.sock is asked for it first")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("https://quay.io/a",), "is not the name of an image"),
        (("alpine", "--client", "node-7"), "'node-7' is not an IP address"),
        ((), "Missing argument 'IMAGE'"),
    ],
)
def test_wrong_command_line(why: Why, arguments: tuple[str, ...], words: str) -> None:
    """It ends with 2 and says what is wrong."""
    result = why(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_wrong_configuration(why: Why) -> None:
    """So it does where nothing can be told."""
    result = why("alpine", more="[[policy]]\naction = 'block'")
    assert result.exit_code == 2
    assert result.stderr == "Error: policy[1].action: 'block' is not one of allow, deny\n"


def test_no_directory(why: Why, tmp_path: Path) -> None:
    """A data directory that is a file holds nothing."""
    (tmp_path / "data").touch()
    assert rows(why("alpine"))["cached"] == "nothing is known of it"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.may_skip("the rule is about users who are not root")
def test_unreadable(why: Why, cache: Threaded, tmp_path: Path) -> None:
    """Who may not read the data directory is told so."""
    cache.log.wait(len(cache.puller().pull(APP, "1").requests))
    (tmp_path / "data" / "links").chmod(0)
    try:
        result = why(why.app)
    finally:
        (tmp_path / "data" / "links").chmod(0o700)
    assert result.exit_code == 2
    assert "cannot be read: Permission denied; run this as the service's user, or as root" in result.stderr
