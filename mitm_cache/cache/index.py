"""A fast, lossy index over diskcache, shared by all processes: whatever is in it can be found again without it.

diskcache's own limits are kept in mind: it pickles what it does not know and un-pickles on read (CVE-2025-69872),
so nothing but inline text, bytes and numbers goes in or comes out; its least-recently-stored policy never writes on a
read; and writes, which may wait for another process's, happen in one thread of our own.
"""

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diskcache

from mitm_cache.errors import StoreError

TIMEOUT = 5.0
"""Seconds to wait for another process's write."""

logger = logging.getLogger(__name__)

type Value = str | bytes | int


class StrictDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Refuses keys and values that would be pickled, when writing and when reading."""

    def put(self, key: Any) -> tuple[Any, bool]:
        if not isinstance(key, str):
            raise TypeError(f"an index key is text, not {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: bool) -> Any:
        if not raw or not isinstance(key, str):
            raise StoreError("the index holds a pickled key; remove the index folder, it is rebuilt")
        return key

    def store(self, value: Any, read: bool, key: Any = diskcache.UNKNOWN) -> tuple[int, int, str | None, Any]:
        # Exact types: diskcache pickles their subclasses, an enum's member for one, and numbers of more than 64 bits.
        if type(value) not in (str, bytes, int) or (isinstance(value, int) and value.bit_length() > 63):
            raise TypeError(f"an index value is text, bytes or a number, not {type(value).__name__}")
        if not isinstance(value, int) and len(value) >= self.min_file_size:
            raise ValueError("an index value is small")
        row: tuple[int, int, str | None, Any] = super().store(value, read, key)
        return row

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        if mode != diskcache.core.MODE_RAW:
            raise StoreError("the index holds a pickled or foreign value; remove the index folder, it is rebuilt")
        return bytes(value) if isinstance(value, memoryview) else value


class _Cache(diskcache.Cache):  # type: ignore[misc]  # diskcache has no types
    """Leaves no connection to the database where it cannot be opened."""

    def __init__(self, folder: str, **settings: object) -> None:
        try:
            super().__init__(folder, **settings)
        except BaseException:
            with contextlib.suppress(AttributeError):  # it has not come so far
                self.close()
            raise


class Index:
    """Text keys to small values."""

    def __init__(self, folder: Path) -> None:
        try:
            self._cache = _Cache(
                str(folder),
                disk=StrictDisk,
                timeout=TIMEOUT,
                eviction_policy="least-recently-stored",
                cull_limit=10,
                size_limit=4 << 30,
                statistics=0,
                # Of a mapped file, what the disk does not give back is no error but the end of the process.
                sqlite_mmap_size=0,
            )
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the index in {folder} cannot be opened: {error}") from error
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._home = threading.get_ident()

    def get(self, key: str) -> Value | None:
        """The value, or None where there is none or it has expired; a broken index has nothing.

        Quick in the thread that made the index. Each thread has a connection to the database which only it can close,
        so other threads, of which there are many, are answered by the writing one.
        """
        if threading.get_ident() == self._home:
            return self._get(key)
        try:
            return self._writer.submit(self._get, key).result()
        except RuntimeError:
            return None  # shutting down

    def _get(self, key: str) -> Value | None:
        try:
            value: Value | None = self._cache.get(key)
        except (sqlite3.Error, diskcache.Timeout):
            return None
        return value

    def put(self, key: str, value: Value, *, seconds: float | None = None) -> None:
        """Write and wait; give up quietly where another process holds the index too long."""
        try:
            self._writer.submit(self._set, key, value, seconds).result()
        except RuntimeError:
            pass  # shutting down: the index can be rebuilt

    def put_soon(self, key: str, value: Value, *, seconds: float | None = None) -> None:
        """Write without waiting."""
        try:
            self._writer.submit(self._set, key, value, seconds)
        except RuntimeError:
            pass  # shutting down

    def put_all(self, rows: Mapping[str, Value]) -> None:
        """Write many at once and wait; what is not written where another process holds the index can be found again."""
        try:
            self._writer.submit(self._set_all, rows).result()
        except RuntimeError:
            pass  # shutting down

    def _set_all(self, rows: Mapping[str, Value]) -> None:
        try:
            with self._cache.transact():
                for key, value in rows.items():
                    self._keep(key, value)
        except (sqlite3.Error, diskcache.Timeout):
            pass

    def _set(self, key: str, value: Value, seconds: float | None) -> None:
        try:
            self._keep(key, value, seconds)
        except (sqlite3.Error, diskcache.Timeout):
            pass

    def _keep(self, key: str, value: Value, seconds: float | None = None) -> None:
        try:
            self._cache.set(key, value, expire=seconds)
        except ValueError:  # too large: a registry may send a Content-Type of any length
            self._cache.delete(key)

    def drop(self, key: str) -> None:
        """Forget a key, without waiting."""
        try:
            self._writer.submit(self._delete, key)
        except RuntimeError:
            pass  # shutting down

    def _delete(self, key: str) -> None:
        try:
            self._cache.delete(key)
        except (sqlite3.Error, diskcache.Timeout):
            pass

    def drop_all(self, keys: Iterable[str]) -> None:
        """Forget many at once and wait; gives up quietly where another process holds the index too long."""
        try:
            self._writer.submit(self._delete_all, list(keys)).result()
        except RuntimeError:
            pass  # shutting down

    def _delete_all(self, keys: Iterable[str]) -> None:
        try:
            with self._cache.transact():
                for key in keys:
                    self._cache.delete(key)
        except (sqlite3.Error, diskcache.Timeout):
            pass

    def drop_prefix(self, prefix: str) -> None:
        """Forget every key that starts with `prefix`, and wait for it. Raises StoreError."""
        try:
            keys = [key for key in self._cache.iterkeys() if key.startswith(prefix)]
        except (sqlite3.Error, diskcache.Timeout) as error:
            raise StoreError(f"the index cannot be read: {error}; remove the index folder, it is rebuilt") from error
        for key in keys:
            self._delete(key)

    def close(self) -> None:
        """Finish what is being written. Call it in the thread that made the index."""
        self._writer.submit(self._cache.close)
        self._writer.shutdown()
        self._cache.close()


class NoIndex(Index):
    """Has nothing and keeps nothing: for whom the files alone count, whatever a power failure makes of an index."""

    def __init__(self) -> None:
        pass

    def get(self, key: str) -> None:
        pass

    def put(self, key: str, value: Value, *, seconds: float | None = None) -> None:
        pass

    def put_soon(self, key: str, value: Value, *, seconds: float | None = None) -> None:
        pass

    def put_all(self, rows: Mapping[str, Value]) -> None:
        pass

    def drop(self, key: str) -> None:
        pass

    def drop_all(self, keys: Iterable[str]) -> None:
        pass

    def drop_prefix(self, prefix: str) -> None:
        pass

    def close(self) -> None:
        pass


def open_index(folder: Path) -> Index:
    """The index, or none where the disk does not let it be opened, as when it is full: a warning says so."""
    try:
        return Index(folder)
    except StoreError as error:
        logger.warning("%s; it is done without until a reload or a restart", error.message)
        return NoIndex()
