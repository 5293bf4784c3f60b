"""The store on this host's disk: <state>/storage/{blobs,tmp,registry.db}; owns the threads."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from llmos.lib.errors import FailedPrecondition, LLMOSError
from llmos.servers.storage import importer, names
from llmos.servers.storage.base import ALL, READ_CHUNK, Storage
from llmos.servers.storage.blobs import Blobs, removal, sealing
from llmos.servers.storage.blobs.cache import Cache, default_cache
from llmos.servers.storage.blobs.uploads import LocalUploads
from llmos.servers.storage.crypt.keys import KeyRing
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.disk import sync_dir, writing
from llmos.servers.storage.importer import Watch
from llmos.servers.storage.model import Draft, Filters, Page, Progress, Registered, Version
from llmos.servers.storage.places.incoming import Incoming
from llmos.servers.storage.registry import Registry
from llmos.servers.storage.registry.model import LineageWalk
from llmos.servers.storage.watched import watched

log = logging.getLogger(__name__)


class LocalStorage(Storage):
    """Implements Storage. Nothing of it blocks the event loop."""

    def __init__(
        self,
        folder: Path,
        *,
        database: str = "",
        imports: int = 2,
        blob_grace_s: float = 86400.0,
        keys: KeyRing | None = None,
        cache_dir: Path | None = None,
        cache_bytes: int = 0,
        upload_ttl_s: float = 86400.0,
    ) -> None:
        """Open or create the store, and clear what a crash left.

        database: URL, "" = a file in `folder`. imports: how many run at a time, others wait.
        blob_grace_s: how long an uploaded blob stays without a version that has it. keys: seals
        new files. cache_dir: where copies for reading by path go, at most cache_bytes of them (0
        = as the disk allows). upload_ttl_s: unfinished uploads are given up after it. Raises
        READ_ONLY, DISK_FULL, STATE_IN_USE, REGISTRY_DAMAGED, NEWER_STATE, BAD_CONFIG,
        DATABASE_UNREACHABLE, KEY_NEEDED, WRONG_KEY, UNSAFE_CACHE.
        """
        blobs, temporary = folder / "blobs", folder / "tmp"
        with writing(folder), contextlib.ExitStack() as undo:
            for path in (folder, blobs, temporary):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(folder / "lock")
            undo.callback(os.close, self._lock)
            self.database = Database(database or folder / "registry.db")
            undo.callback(self.database.close)
            sync_dir(folder)  # the database's own file, and the folders
            sealing.check(self.database, keys)
            cache = Cache(cache_dir or default_cache(folder, keys is not None), cache_bytes)
            self.blobs = Blobs(blobs, temporary, self.database, cache, keys)
            self.registry = Registry(self.database, blobs)
            self._grace_s = blob_grace_s
            self.incoming = Incoming(folder / "incoming")
            self.incoming.collect(blob_grace_s)
            removal.recover(self.blobs)
            self.uploads = LocalUploads(folder / "uploads", self.blobs, upload_ttl_s)
            undo.callback(self.uploads.close)
            removal.collect(self.blobs, blob_grace_s)
            undo.pop_all()
        self._imports = ThreadPoolExecutor(imports, thread_name_prefix="import")

    def close(self) -> None:
        """Wait for running imports and close the files. Calls must have ended or been cancelled."""
        self._imports.shutdown(wait=True, cancel_futures=True)
        self.uploads.close()
        self.database.close()
        os.close(self._lock)

    async def keep_clean(self, period_s: float = 3600.0) -> None:
        """Collect abandoned uploads every `period_s`, until cancelled."""
        while True:
            await asyncio.sleep(period_s)
            try:
                await asyncio.to_thread(self.uploads.collect)
                await asyncio.to_thread(removal.collect, self.blobs, self._grace_s)
                await asyncio.to_thread(self.incoming.collect, self._grace_s)
            except LLMOSError as exc:  # e.g. a full disk: the next time may find it better
                log.warning("cannot collect abandoned uploads", extra={"cause": str(exc)})

    async def import_model(
        self, source: str, name: str
    ) -> AsyncGenerator[Progress | Registered, None]:
        """See Storage. When the caller goes away, the import stops before this returns."""

        def work(watch: Watch) -> Registered:
            return importer.import_model(
                self.blobs, self.registry, source, name, watch, self.incoming
            )

        async with contextlib.aclosing(watched(self._imports, work)) as steps:
            async for step in steps:
                yield step

    async def create_version(self, draft: Draft) -> Registered:
        """See Storage."""
        return await asyncio.to_thread(importer.create_version, self.blobs, self.registry, draft)

    async def get_version(self, ref: str) -> Version:
        """See Storage."""
        return await asyncio.to_thread(self._get, ref)

    def _get(self, ref: str) -> Version:
        version = self.registry.get(ref)
        special = self.blobs.special([file.sha256 for file in version.files])
        if not special:
            return version
        files = [
            replace(f, path=self.blobs.copy(special[f.sha256])) if f.sha256 in special else f
            for f in version.files
        ]
        return replace(version, files=tuple(files))

    async def list_versions(
        self, name: str, page_size: int, page_token: str, filters: Filters = ALL
    ) -> Page:
        """See Storage."""
        return await asyncio.to_thread(self._page, name, page_size, page_token, filters)

    def _page(self, name: str, page_size: int, page_token: str, filters: Filters) -> Page:
        page = self.registry.page(name, page_size, page_token, filters)
        digests = {file.sha256 for version in page.versions for file in version.files}
        special = self.blobs.special(list(digests))
        if not special:
            return page
        versions = []
        for version in page.versions:  # a listing makes no copies
            files = [
                replace(f, path=self.blobs.cache.get(f.sha256, f.size))
                if f.sha256 in special
                else f
                for f in version.files
            ]
            versions.append(replace(version, files=tuple(files)))
        return Page(versions, page.next_token)

    async def delete_version(self, ref: str, force: bool) -> int:
        """See Storage."""
        return await asyncio.to_thread(self._delete, ref, force)

    async def set_tags(
        self, ref: str, added: Mapping[str, str], removed: Sequence[str]
    ) -> Mapping[str, str]:
        """See Storage."""
        names.require_version(ref)
        return await asyncio.to_thread(self.registry.set_tags, ref, added, removed)

    async def lineage(self, ref: str, descendants: bool, max_depth: int) -> LineageWalk:
        """See Storage."""
        return await asyncio.to_thread(self.registry.lineage, ref, descendants, max_depth)

    def _delete(self, ref: str, force: bool) -> int:
        names.require_version(ref)
        with removal.dropping(self.blobs, self._grace_s) as drop:
            drop.digests += self.registry.delete(drop.sql, ref, force)
        return drop.freed_bytes

    async def write_blob(self, sha256: str, data: AsyncIterator[bytes]) -> tuple[int, bool]:
        """See Storage."""
        names.check_digest(sha256)
        size = await asyncio.to_thread(self.blobs.touch, sha256)
        if size >= 0:
            return size, True
        staging = self.blobs.stage()
        try:
            writer = staging.writer()
            async for piece in data:
                await asyncio.to_thread(writer.write, piece)
            staged = await asyncio.to_thread(staging.upload, writer, sha256)
            await asyncio.to_thread(self.blobs.place, staged)
            return staged.size, False
        finally:  # in a thread: it waits for a write that goes on though its waiter was cancelled
            await asyncio.shield(asyncio.to_thread(self.blobs.discard, staging))

    async def read_blob(
        self, sha256: str, offset: int, length: int, piece: int = READ_CHUNK
    ) -> AsyncGenerator[bytes, None]:
        """See Storage."""
        names.check_digest(sha256)
        opened, end = await asyncio.to_thread(self.blobs.open_range, sha256, offset, length)
        ahead: asyncio.Future[bytes] | None = None
        try:
            while offset < end or ahead is not None:
                data = await ahead if ahead is not None else b""
                ahead = None
                if offset < end:  # read the next bytes while these are on their way
                    count = min(piece, end - offset)
                    ahead = asyncio.ensure_future(asyncio.to_thread(opened.read, offset, count))
                    offset += count
                if data:
                    yield data
        finally:
            if ahead is not None:
                await asyncio.wait([ahead])
            opened.close()

    async def stat_blobs(self, digests: Sequence[str]) -> list[int]:
        """See Storage."""
        for sha256 in digests:
            names.check_digest(sha256)
        return await asyncio.to_thread(self.blobs.sizes, digests)


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
