"""The store on this host's disk: <state>/storage/{blobs,tmp,registry.db}; owns the threads."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llmos.lib.errors import FailedPrecondition, LLMOSError
from llmos.servers.storage import importer, names
from llmos.servers.storage.base import Storage
from llmos.servers.storage.blobs import Blobs, damaged
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.disk import writing
from llmos.servers.storage.model import Draft, Page, Progress, Registered, Version
from llmos.servers.storage.registry import Registry

log = logging.getLogger(__name__)
READ_CHUNK = 256 << 10  # bytes of one message: under the kernel's frame limit, over its overhead
_READ_AHEAD = 1 << 20
_TICK_S = 0.1


class LocalStorage(Storage):
    """Implements Storage. Nothing of it blocks the event loop."""

    def __init__(
        self,
        folder: Path,
        *,
        database: str = "",
        imports: int = 2,
        blob_grace_s: float = 86400.0,
    ) -> None:
        """Open or create the store, and clear what a crash left.

        database: URL, "" = a file in `folder`. imports: how many run at a time, others wait.
        blob_grace_s: how long an uploaded blob stays without a version that has it. Raises
        READ_ONLY, DISK_FULL, STATE_IN_USE, REGISTRY_DAMAGED, NEWER_STATE, BAD_CONFIG,
        DATABASE_UNREACHABLE.
        """
        blobs, temporary = folder / "blobs", folder / "tmp"
        with writing(folder), contextlib.ExitStack() as undo:
            for path in (folder, blobs, temporary):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(folder / "lock")
            undo.callback(os.close, self._lock)
            self._database = Database(database or folder / "registry.db")
            undo.callback(self._database.close)
            self._blobs = Blobs(blobs, temporary, self._database)
            self._registry = Registry(self._database, blobs)
            self._grace_s = blob_grace_s
            self._blobs.recover()
            self._blobs.collect(blob_grace_s)
            undo.pop_all()
        self._imports = ThreadPoolExecutor(imports, thread_name_prefix="import")

    def close(self) -> None:
        """Wait for running imports and close the files. Calls must have ended or been cancelled."""
        self._imports.shutdown(wait=True, cancel_futures=True)
        self._database.close()
        os.close(self._lock)

    async def keep_clean(self, period_s: float = 3600.0) -> None:
        """Collect abandoned uploads every `period_s`, until cancelled."""
        while True:
            await asyncio.sleep(period_s)
            try:
                await asyncio.to_thread(self._blobs.collect, self._grace_s)
            except LLMOSError as exc:  # e.g. a full disk: the next time may find it better
                log.warning("cannot collect abandoned uploads", extra={"cause": str(exc)})

    async def import_model(
        self, source: str, name: str
    ) -> AsyncGenerator[Progress | Registered, None]:
        """See Storage. When the caller goes away, the import stops before this returns."""
        watch = importer.Watch()
        job = self._imports.submit(
            importer.import_model, self._blobs, self._registry, source, name, watch
        )
        running = asyncio.wrap_future(job)
        try:
            last = None
            while not running.done():
                await asyncio.wait([running], timeout=_TICK_S)
                if last != (last := watch.progress):
                    yield last
            yield running.result()
        finally:
            watch.cancel()
            if not job.cancel():
                await asyncio.wait([running])
            if running.done() and not running.cancelled():
                running.exception()  # when the caller is gone, nobody else fetches it

    async def create_version(self, draft: Draft) -> Registered:
        """See Storage."""
        return await asyncio.to_thread(importer.create_version, self._blobs, self._registry, draft)

    async def get_version(self, ref: str) -> Version:
        """See Storage."""
        return await asyncio.to_thread(self._registry.get, ref)

    async def list_versions(self, name: str, page_size: int, page_token: str) -> Page:
        """See Storage."""
        if name:
            names.check_name(name)
        return await asyncio.to_thread(self._registry.page, name, page_size, page_token)

    async def delete_version(self, ref: str, force: bool) -> int:
        """See Storage."""
        return await asyncio.to_thread(self._delete, ref, force)

    def _delete(self, ref: str, force: bool) -> int:
        names.require_version(ref)
        with self._blobs.dropping() as (sql, digests):
            digests += self._registry.delete(sql, ref, force)
            sizes = dict(zip(digests, self._blobs.sizes(digests), strict=True))
        return sum(sizes[digest] for digest in digests)

    async def write_blob(self, sha256: str, data: AsyncIterator[bytes]) -> tuple[int, bool]:
        """See Storage."""
        names.check_digest(sha256)
        size = await asyncio.to_thread(self._blobs.touch, sha256)
        if size >= 0:
            return size, True
        staging = self._blobs.stage()
        try:
            writer = staging.writer()
            async for piece in data:
                await asyncio.to_thread(writer.write, piece)
            staged = await asyncio.to_thread(staging.upload, writer, sha256)
            await asyncio.to_thread(self._blobs.place, staged)
            return staged.size, False
        finally:  # in a thread: it waits for a write that goes on though its waiter was cancelled
            await asyncio.shield(asyncio.to_thread(self._blobs.discard, staging))

    async def read_blob(self, sha256: str, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        """See Storage. Yields at most READ_CHUNK bytes at a time."""
        names.check_digest(sha256)
        file, end = await asyncio.to_thread(self._blobs.open, sha256, offset, length)
        with file:
            while offset < end:
                data = await asyncio.to_thread(file.read, min(_READ_AHEAD, end - offset))
                if not data:
                    raise damaged(sha256, "it ends too early")
                offset += len(data)
                for start in range(0, len(data), READ_CHUNK):
                    yield data[start : start + READ_CHUNK]

    async def stat_blobs(self, digests: Sequence[str]) -> list[int]:
        """See Storage."""
        for sha256 in digests:
            names.check_digest(sha256)
        return await asyncio.to_thread(self._blobs.sizes, digests)


def _lock(path: Path) -> int:
    """Take the store for this process; the system releases it however the process ends."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(fd)
        raise FailedPrecondition(
            "STATE_IN_USE",
            f"Another llmos-storage has {path.parent} open; stop it or name another state "
            "directory by --state-dir.",
        ) from exc
    return fd
