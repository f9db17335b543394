"""Tags, repositories and referrers of local names (distribution-spec, "Content Discovery")."""

import asyncio
from pathlib import Path
from urllib.parse import parse_qs, quote

from mitm_cache.oci.manifest import OCI_INDEX, OCI_MANIFEST
from tests.local.registry import CONFIG, Local, Reply, descriptor, digest_of, index, manifest

SBOM, SIGNATURE = "application/vnd.example.sbom", "application/vnd.example.signature"


def next_of(reply: Reply) -> str:
    """The page that a Link leads to."""
    link = str(reply["link"])
    assert link.startswith("<")
    assert link.endswith('>; rel="next"')
    return link[1:].partition(">")[0]


def test_pages_of_tags(tmp_path: Path) -> None:
    """In the order of their names, so many at a time, each page with the way to the next."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            for tag in ("c", "a", "d", "b", "e"):
                await local.push("team/app", tag)
            whole = await local.ask("GET", "/v2/team/app/tags/list")
            assert whole.json == {"name": "team/app", "tags": ["a", "b", "c", "d", "e"]}
            assert whole["link"] is None
            first = await local.ask("GET", "/v2/team/app/tags/list?n=2")
            assert first.json["tags"] == ["a", "b"]
            second = await local.ask("GET", next_of(first))
            assert second.json["tags"] == ["c", "d"]
            third = await local.ask("GET", next_of(second))
            assert (third.json["tags"], third["link"]) == (["e"], None)
            none = await local.ask("GET", "/v2/team/app/tags/list?n=0")
            assert (none.json["tags"], none["link"]) == ([], None)
            assert (await local.ask("GET", "/v2/team/app/tags/list?n=2&last=z")).json["tags"] == []
            assert (await local.ask("GET", "/v2/team/app/tags/list?n=x")).status == 400
            head = await local.ask("HEAD", "/v2/team/app/tags/list")
            assert (head.status, head.body) == (200, b"")

    asyncio.run(run())


def test_catalog(tmp_path: Path) -> None:
    """The repositories that hold something, and no other registry's."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            assert (await local.ask("GET", "/v2/_catalog")).json == {"repositories": []}
            for name in ("b", "a/deep/one", "c"):
                await local.push(name, "1")
            assert (await local.ask("GET", "/v2/_catalog")).json == {"repositories": ["a/deep/one", "b", "c"]}
            page = await local.ask("GET", "/v2/_catalog?n=1", given="mine/")
            assert parse_qs(next_of(page).partition("?")[2]) == {"last": ["a/deep/one"], "n": ["1"]}
            assert next_of(page).startswith("/v2/mine/_catalog?")

    asyncio.run(run())


def test_referrers(tmp_path: Path) -> None:
    """What says at its push that it is about a manifest, from then on until it is deleted; by type where asked."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            subject = manifest(CONFIG)
            about = descriptor(subject, OCI_MANIFEST)
            place = f"/v2/a/referrers/{about['digest']}"
            empty = await local.ask("GET", place)
            assert (empty.status, empty["content-type"], empty.json["manifests"]) == (200, OCI_INDEX, [])
            await local.push_blob("a", CONFIG)
            sbom = manifest(subject=about, artifactType=SBOM, annotations={"by": "x"})
            signature = manifest(subject=about, config=CONFIG)
            list_ = index(subject=about, artifactType=SIGNATURE)
            for each in (sbom, signature, list_):
                pushed = await local.push_manifest("a", digest_of(each), each)
                assert (pushed.status, pushed["oci-subject"]) == (201, about["digest"])
            await local.push("a", "1", CONFIG)
            found = (await local.ask("GET", place)).json
            assert found["mediaType"] == OCI_INDEX
            rows = {row["digest"]: row for row in found["manifests"]}
            assert rows.keys() == {digest_of(each) for each in (sbom, signature, list_)}
            assert rows[digest_of(sbom)] == {
                "mediaType": OCI_MANIFEST,
                "digest": digest_of(sbom),
                "size": len(sbom),
                "artifactType": SBOM,
                "annotations": {"by": "x"},
            }
            assert rows[digest_of(signature)]["artifactType"] == "application/vnd.oci.image.config.v1+json"
            assert rows[digest_of(list_)]["mediaType"] == OCI_INDEX
            filtered = await local.ask("GET", f"{place}?artifactType={SBOM}")
            assert filtered["oci-filters-applied"] == "artifactType"
            assert [row["digest"] for row in filtered.json["manifests"]] == [digest_of(sbom)]
            assert (await local.ask("DELETE", f"/v2/a/manifests/{digest_of(sbom)}")).status == 202
            assert (await local.ask("GET", f"{place}?artifactType={SBOM}")).json["manifests"] == []
            assert len((await local.ask("GET", place)).json["manifests"]) == 2
            assert (await local.ask("GET", place.replace("/v2/a/", "/v2/b/"))).json["manifests"] == []

    asyncio.run(run())


def test_pages_of_referrers(tmp_path: Path) -> None:
    """However much is said about a manifest, an answer is about as large as a manifest may be."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            about = descriptor(manifest(CONFIG), OCI_MANIFEST)
            await local.push_blob("a", CONFIG)
            pushed = set()
            for number in range(6):
                body = manifest(subject=about, artifactType=SBOM, annotations={"x": f"{number}" * 1_500_000})
                assert (await local.push_manifest("a", digest_of(body), body)).status == 201
                pushed.add(digest_of(body))
            place, seen = f"/v2/a/referrers/{about['digest']}?artifactType={SBOM}", []
            while place:
                page = await local.ask("GET", place)
                assert (page.status, len(page.body) < 5 << 20) == (200, True)
                seen += [row["digest"] for row in page.json["manifests"]]
                place = next_of(page) if page["link"] else ""
                assert f"artifactType={quote(SBOM, safe='')}" in place or not place
            assert (len(seen), set(seen)) == (6, pushed)
            assert (await local.ask("GET", f"/v2/a/referrers/{about['digest']}?last=x")).status == 400

    asyncio.run(run())
