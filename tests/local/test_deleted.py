"""A blob that was deleted stays deleted, though another repository still holds it."""

import asyncio
from pathlib import Path

from tests.local.registry import Local, digest_of

LAYER = b"a layer" * 99


def test_a_deleted_blob_is_not_found_again(tmp_path: Path) -> None:
    """HEAD, which links what others hold for who is about to push, does not bring it back; a mount and a push do."""

    async def run() -> None:
        async with Local(tmp_path) as local:
            target = f"/v2/b/blobs/{digest_of(LAYER)}"
            mount = f"/v2/b/blobs/uploads/?mount={digest_of(LAYER)}&from=a"
            await local.push_blob("a", LAYER)
            assert (await local.ask("HEAD", target)).status == 200
            assert (await local.ask("DELETE", target)).status == 202
            assert (await local.ask("HEAD", target)).status == 404
            assert (await local.ask("GET", target)).code == "BLOB_UNKNOWN"
            assert (await local.ask("POST", mount)).status == 201
            assert (await local.ask("HEAD", target)).status == 200
            assert (await local.ask("DELETE", target)).status == 202
            assert (await local.push_blob("b", LAYER)).status == 201
            assert (await local.ask("GET", target)).body == LAYER

    asyncio.run(run())
