"""Who may do what at local names: the policy's rows, the users of the cache, and what nobody is told."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mitm_cache.cache.entry import Link, Origin
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Repository
from mitm_cache.rights import ANYONE
from mitm_cache.wire.message import Credential
from tests.local.registry import CONFIG, OCTETS, Local, digest_of, index, manifest

LAYER = b"a layer" * 1000
DIGEST = digest_of(LAYER)


def users_file(tmp_path: Path) -> str:
    """The key of the configuration for a file of users; who they are, the door has found out already."""
    path = tmp_path / "users"
    path.write_text("")
    path.chmod(0o600)
    return f'[clients]\nusers_file = "{path}"\n'


PUSHES = [
    ("POST", "/v2/team/app/blobs/uploads/"),
    ("POST", f"/v2/team/app/blobs/uploads/?digest={DIGEST}"),
    ("POST", f"/v2/team/app/blobs/uploads/?mount={DIGEST}&from=other"),
    ("PATCH", "/v2/team/app/blobs/uploads/x"),
    ("PUT", f"/v2/team/app/blobs/uploads/x?digest={DIGEST}"),
    ("DELETE", "/v2/team/app/blobs/uploads/x"),
    ("GET", "/v2/team/app/blobs/uploads/x"),
    ("PUT", "/v2/team/app/manifests/1"),
    ("DELETE", "/v2/team/app/manifests/1"),
    ("DELETE", f"/v2/team/app/manifests/{DIGEST}"),
    ("DELETE", f"/v2/team/app/blobs/{DIGEST}"),
]


@pytest.mark.parametrize(("method", "target"), PUSHES)
def test_strangers_do_not_push(tmp_path: Path, method: str, target: str) -> None:
    """Where there are users, strangers are asked to log in for everything that changes something."""

    async def run() -> None:
        async with Local(tmp_path, more=users_file(tmp_path)) as local:
            refused = await local.ask(method, target)
            assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
            assert refused["www-authenticate"] == 'Basic realm="mitm-cache"'
            assert refused.outcome == "LOCAL"  # nobody shows a password before that
            wrong = await local.ask(method, target, credential=Credential("Basic Y2k6d3Jvbmc="))
            assert (wrong.status, wrong.outcome) == (401, "REFUSED")
            stranger = await local.ask(method, target, bearer=True)  # whose token is a stranger's
            assert (stranger.status, stranger.outcome) == (401, "REFUSED")
            assert (await local.ask(method, target, user="ci")).status not in (401, 403)
            assert local.uploads() == [] or method == "POST"

    asyncio.run(run())


def test_strangers_pull(tmp_path: Path) -> None:
    """They pull, though the ping asks them who they are: clients learn there how to log in."""

    async def run() -> None:
        async with Local(tmp_path, more=users_file(tmp_path)) as local:
            assert (await local.ask("GET", "/v2/")).status == 401
            assert (await local.ask("GET", "/v2/", user="ci")).status == 200
            await local.push_blob("team/app", CONFIG, user="ci")
            await local.push_blob("team/app", LAYER, user="ci")
            pushed = await local.push_manifest("team/app", "1", manifest(LAYER), user="ci")
            assert pushed.status == 201
            for target in ("manifests/1", f"blobs/{DIGEST}", "tags/list"):
                assert (await local.ask("GET", f"/v2/team/app/{target}")).status == 200

    asyncio.run(run())


def test_rows_about_pushing(tmp_path: Path) -> None:
    """`fill` says who may push, `deny` who may not even pull, each row for what it names."""
    rows = """
[[policy]]
registry = "localhost:5000"
repository = "secret/*"
users = ["boss"]
[[policy]]
registry = "local"
repository = "secret/*"
action = "deny"
[[policy]]
registry = "local"
repository = "team/*"
fill = ["ci", "10.9.0.0/16"]
[[policy]]
registry = "local"
repository = "open/*"
[[policy]]
min_age = "1d"
"""

    async def run() -> None:
        async with Local(tmp_path, more=users_file(tmp_path) + rows) as local:

            async def opens(name: str, user: str) -> int:
                return (await local.ask("POST", f"/v2/{name}/blobs/uploads/", user=user)).status

            assert (await opens("secret/a", "boss"), await opens("secret/a", "ci")) == (202, 403)
            assert await opens("secret/a", "") == 401  # the boss may be let in
            assert (await local.ask("GET", "/v2/secret/a/tags/list", user="ci")).code == "DENIED"
            assert (await opens("team/a", "ci"), await opens("team/a", "boss"), await opens("team/a", "")) == (
                202,
                403,
                401,
            )
            assert await opens("open/a", "") == 202
            # A row about all registries speaks of pulls.
            assert (await opens("other", ""), await opens("other", "ci")) == (401, 202)
            refused = await local.ask("POST", "/v2/team/a/blobs/uploads/", user="boss")
            assert "policy 3 lets this client push nothing to local/team/a" in refused.message
            await local.push_blob("secret/a", CONFIG, user="boss")
            assert (await local.ask("GET", "/v2/_catalog", user="ci")).json == {"repositories": []}
            assert (await local.ask("GET", "/v2/_catalog", user="boss")).json == {"repositories": ["secret/a"]}

    asyncio.run(run())


def test_frozen(tmp_path: Path) -> None:
    """A frozen tag is served as what it is frozen at, and is pushed as nothing else."""
    good, other = manifest(), manifest(LAYER)
    row = f'[[policy]]\nregistry = "local"\nrepository = "a"\ntag = "1"\nfreeze = "{digest_of(good)}"\n'

    async def run() -> None:
        async with Local(tmp_path, more=row) as local:
            for content in (CONFIG, LAYER):
                await local.push_blob("a", content)
            refused = await local.push_manifest("a", "1", other)
            assert (refused.status, refused.code) == (403, "DENIED")
            assert (await local.push_manifest("a", "1", good)).status == 201
            assert (await local.push_manifest("a", "2", other)).status == 201
            assert (await local.ask("GET", "/v2/a/manifests/1")).body == good

    asyncio.run(run())


def test_what_others_tags_need_is_theirs(tmp_path: Path) -> None:
    """Who may push some tags of a repository deletes nothing by its digest that the other tags need."""
    rows = """
[[policy]]
registry = "local"
repository = "app"
tag = "prod-*"
users = ["ci"]
[[policy]]
registry = "local"
repository = "app"
tag = "prod-*"
action = "deny"
"""

    async def run() -> None:
        async with Local(tmp_path, more=users_file(tmp_path) + rows) as local:
            for content in (CONFIG, LAYER):
                await local.push_blob("app", content, user="ann")
            child, mine = manifest(LAYER), manifest(CONFIG)
            top = index(child)
            for body in (child, mine):
                assert (await local.push_manifest("app", digest_of(body), body, user="ann")).status == 201
            assert (await local.push_manifest("app", "prod-1", top, user="ann")).status == 403
            assert (await local.push_manifest("app", "prod-1", top, user="ci")).status == 201
            assert (await local.push_manifest("app", "dev", mine, user="ann")).status == 201
            theirs = [f"manifests/{digest_of(top)}", f"manifests/{digest_of(child)}", f"blobs/{DIGEST}"]
            for what in theirs:
                refused = await local.ask("DELETE", f"/v2/app/{what}", user="ann")
                assert (refused.status, refused.code) == (403, "DENIED")
                assert "local/app:prod-1" in refused.message
            assert (await local.ask("GET", "/v2/app/manifests/prod-1", user="ci")).body == top
            assert (await local.ask("DELETE", f"/v2/app/manifests/{digest_of(mine)}", user="ann")).status == 202
            for what in theirs:
                assert (await local.ask("DELETE", f"/v2/app/{what}", user="ci")).status == 202

    asyncio.run(run())


# What is here already need not be pushed.


def cached(local: Local, registry: str, name: str, origin: Origin = Origin.PULLED, content: bytes = LAYER) -> None:
    """Content of another registry, as a pull leaves it."""
    digest = Digest.of(content)
    draft = local.data / "draft"
    draft.write_bytes(content)
    local.core.blobs.adopt(digest, draft)
    link = Link(digest, "application/octet-stream", len(content), origin)
    local.core.links.hold(registry, Repository(name), link)


async def is_taken(local: Local, name: str = "mine", **more: Any) -> tuple[int, int]:
    """What HEAD says of the layer, and what a mount of it says."""
    head = await local.ask("HEAD", f"/v2/{name}/blobs/{DIGEST}", **more)
    mount = await local.ask("POST", f"/v2/{name}/blobs/uploads/?mount={DIGEST}&from=any", **more)
    return head.status, mount.status


def test_between_local_repositories(tmp_path: Path) -> None:
    """A blob of another repository that the client may pull from is mounted, with `from` or without, or by HEAD."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            await local.push_blob("base", LAYER)
            for query in (f"mount={DIGEST}&from=base", f"mount={DIGEST}"):
                mounted = await local.ask("POST", f"/v2/{len(query)}/blobs/uploads/?{query}")
                assert (mounted.status, mounted["location"]) == (201, f"/v2/{len(query)}/blobs/{DIGEST}")
                assert (await local.ask("GET", f"/v2/{len(query)}/blobs/{DIGEST}")).body == LAYER
            assert (await local.ask("GET", f"/v2/third/blobs/{DIGEST}")).status == 404  # a GET links nothing
            assert await is_taken(local, "third") == (200, 201)
            absent = await local.ask("POST", f"/v2/a/blobs/uploads/?mount={digest_of(b'?')}&from=base")
            assert (absent.status, absent["range"]) == (202, "0-0")

    asyncio.run(run())


def test_not_from_where_the_client_may_not_pull(tmp_path: Path) -> None:
    """Of a repository that policy denies nobody learns what it holds."""
    row = '[[policy]]\nregistry = "local"\nrepository = "secret"\nusers = ["boss"]\n'
    row += '[[policy]]\nregistry = "local"\nrepository = "secret"\naction = "deny"\n'

    async def run() -> None:
        async with Local(tmp_path, more=row) as local:
            await local.push_blob("secret", LAYER, user="boss")
            assert await is_taken(local, user="ci") == (404, 202)
            assert await is_taken(local, user="boss") == (200, 201)

    asyncio.run(run())


def test_from_public_repositories(tmp_path: Path) -> None:
    """What strangers may read of another registry is taken from there; what is not known to be public is not."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            known = local.core.known
            cached(local, "quay.io", "private/app")
            assert await is_taken(local) == (404, 202)
            known.verdicts.keep("quay.io", Repository("other/app"), None)
            assert await is_taken(local) == (404, 202)
            known.verdicts.keep("quay.io", Repository("private/app"), None)
            assert await is_taken(local) == (200, 201)
            assert (await local.ask("GET", f"/v2/mine/blobs/{DIGEST}")).body == LAYER

    asyncio.run(run())


def test_as_it_was_when_it_was_last_asked(tmp_path: Path) -> None:
    """What strangers could read counts, unless they are known not to be let in any more."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            known, name = local.core.known, Repository("team/app")
            cached(local, "quay.io", "team/app")
            known.readers.keep("quay.io", name, ANYONE)
            known.verdicts.close("quay.io", name)
            assert await is_taken(local) == (404, 202)
            known.readers.drop("quay.io", name, ANYONE)
        async with Local(tmp_path) as local:
            assert await is_taken(local) == (404, 202)
            local.core.known.readers.keep("quay.io", name, ANYONE)
            assert await is_taken(local) == (200, 201)

    asyncio.run(run())


@pytest.mark.parametrize("origin", [Origin.IMPORTED, Origin.SYNCED])
def test_what_the_operator_has_put_here(tmp_path: Path, origin: Origin) -> None:
    """It is for everybody whom policy lets have it, here too."""
    rows = '[[policy]]\nregistry = "quay.io"\nusers = ["boss"]\n[[policy]]\nregistry = "quay.io"\naction = "deny"\n'

    async def run() -> None:
        async with Local(tmp_path, more=rows) as local:
            cached(local, "quay.io", "team/app", origin)
            assert await is_taken(local, user="ci") == (404, 202)
            assert await is_taken(local, user="boss") == (200, 201)

    asyncio.run(run())


def test_open_rights(tmp_path: Path) -> None:
    """Where a registry's rights are open, what is cached of it is everybody's."""

    async def run() -> None:
        async with Local(tmp_path, more='[registries."quay.io"]\nrights = "open"\n') as local:
            cached(local, "quay.io", "team/app")
            assert await is_taken(local) == (200, 201)

    asyncio.run(run())


def test_only_for_who_may_push(tmp_path: Path) -> None:
    """Who may only pull links nothing, and is told nothing."""

    async def run() -> None:
        async with Local(tmp_path, more=users_file(tmp_path)) as local:
            cached(local, "quay.io", "team/app", Origin.IMPORTED)
            assert await is_taken(local) == (404, 401)
            assert await is_taken(local, user="ci") == (200, 201)

    asyncio.run(run())


def test_damaged_content_is_not_taken(tmp_path: Path) -> None:
    """What the disk has spoilt does not stand for what a client would have pushed."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            cached(local, "quay.io", "team/app", Origin.IMPORTED)
            path = local.core.blobs.path(Digest.of(LAYER))
            path.write_bytes(b"x" * len(LAYER))
            assert await is_taken(local) == (404, 202)
            pushed = await local.ask("POST", f"/v2/mine/blobs/uploads/?digest={DIGEST}", OCTETS, LAYER)
            assert pushed.status == 201
            assert (await local.ask("GET", f"/v2/mine/blobs/{DIGEST}")).body == LAYER

    asyncio.run(run())
