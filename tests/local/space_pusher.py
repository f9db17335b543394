"""A process that pushes without a door: `python -m tests.local.space_pusher DATA SEED LIMIT`, until it is killed.

Four threads share one `Space`, as those of a worker do, and push to whatever repository, whole or in two pieces; some
give up, some delete. A line is written for what each push came to.
"""

import os
import random
import sys
import threading
from functools import partial
from pathlib import Path

from mitm_cache.cache.blobs import Blobs
from mitm_cache.cache.layout import Layout, open_layout
from mitm_cache.cache.owned import held
from mitm_cache.cache.room import Room
from mitm_cache.errors import ClientError
from mitm_cache.local.collection import Collection
from mitm_cache.local.space import Space
from mitm_cache.local.store import Store
from mitm_cache.local.uploads import Uploads
from mitm_cache.oci.digest import Digest
from mitm_cache.oci.reference import Repository
from mitm_cache.registries import LOCAL

REPOSITORIES = [Repository(name) for name in ("a", "b", "team/app")]
CONTENTS = 200
"""So many different ones are pushed by all: some are there already, or come twice at once."""
SMALLEST, LARGEST = 1000, 40_000


def space_of(layout: Layout, limit: int) -> Space:
    """The room of a data directory, in this process."""
    room = Room(layout.spool, least=lambda _: 0, sweep=lambda _: None)
    collection = Collection(Store(layout, Blobs(layout.blobs)))
    return Space(layout, limit=lambda: limit, room=room, collect=lambda size: collection.make_room(size).freed)


def content_of(number: int) -> bytes:
    """The same for all."""
    dice = random.Random(number)
    return dice.randbytes(dice.randrange(SMALLEST, LARGEST))


class Pusher:
    """What the threads share."""

    def __init__(self, data: Path, limit: int) -> None:
        self._layout = open_layout(data)
        self._store = Store(self._layout, Blobs(self._layout.blobs))
        self._uploads = Uploads(self._layout.uploads)
        self._space = space_of(self._layout, limit)

    def keep_pushing(self, seed: str) -> None:
        dice = random.Random(seed)
        while True:
            line = self._push(dice, content_of(dice.randrange(CONTENTS)))
            os.write(1, f"{line}\n".encode())  # of several threads, a line at a time

    def _push(self, dice: random.Random, content: bytes) -> str:
        repository, digest = dice.choice(REPOSITORIES), Digest.of(content)
        if dice.random() < 0.2:
            for each in held(self._layout, LOCAL, repository):
                if (link := self._store.held(repository, each)) is not None and dice.random() < 0.2:
                    self._store.delete(repository, link)
                    return "deleted"
        name, half = "", dice.randrange(len(content))
        for start, stop in ((0, half), (half, len(content))) if dice.random() < 0.5 else ((0, len(content)),):
            upload = self._uploads.open(repository, name) if name else self._uploads.begin(repository)
            assert upload is not None
            name = upload.name
            try:
                size = stop - start if dice.random() < 0.7 else None
                share = self._space.take(size, name, upload.size)
            except ClientError as error:
                upload.remove()
                upload.close()
                return "refused" if error.code == "DENIED" else str(error)
            try:
                if share.room < stop - start:
                    share.grow(stop - start - share.room)
                upload.write(content[start:stop])
                if dice.random() < 0.1:
                    upload.remove()
                    return "given up"
                if stop == len(content):
                    upload.prove("sha256")
                    told = partial(share.keep, stop - start)
                    self._store.adopt(repository, digest, upload.path, upload.inode, upload.size, told)
            except ClientError:
                upload.remove()
                return "refused"
            finally:
                share.close(0 if upload.removed else upload.size - start)
                upload.close()
        return f"kept {len(content)}"


if __name__ == "__main__":
    pusher = Pusher(Path(sys.argv[1]), int(sys.argv[3]))
    for thread in range(4):
        threading.Thread(target=pusher.keep_pushing, args=(f"{sys.argv[2]} {thread}",)).start()
