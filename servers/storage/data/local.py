"""Data sets on this host's disk; owns the threads that import and read."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from llmos.servers.storage import names
from llmos.servers.storage.blobs import Blobs, removal
from llmos.servers.storage.data.base import Datasets
from llmos.servers.storage.data.catalog import Catalog
from llmos.servers.storage.data.model import Chunk, Dataset, Imported, Order, Page, Share
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.importer import Watch
from llmos.servers.storage.model import Progress
from llmos.servers.storage.watched import watched


class LocalDatasets(Datasets):
    """Implements Datasets. Nothing of it blocks the event loop."""

    def __init__(
        self, blobs: Blobs, database: Database, *, imports: int = 2, blob_grace_s: float = 86400.0
    ) -> None:
        """Use the store's blobs and database. imports: how many run at a time, others wait."""
        self._blobs = blobs
        self._catalog = Catalog(database)
        self._grace_s = blob_grace_s
        self._imports = ThreadPoolExecutor(imports, thread_name_prefix="dataset")

    def close(self) -> None:
        """Wait for running imports. Calls must have ended or been cancelled."""
        self._imports.shutdown(wait=True, cancel_futures=True)

    def import_dataset(self, order: Order) -> AsyncGenerator[Progress | Imported, None]:
        """See Datasets. When the caller goes away, the import stops before this returns."""
        return watched(self._imports, functools.partial(self._import, order))

    def _import(self, order: Order, watch: Watch) -> Imported:
        # Arrow takes a while to import: at the first import of a data set, not at the start.
        from llmos.servers.storage.data.pipeline import import_dataset

        made = import_dataset(self._blobs, self._catalog, order, watch)
        return replace(made, dataset=self._with_paths(made.dataset))

    async def get(self, ref: str) -> Dataset:
        """See Datasets."""
        return await asyncio.to_thread(self._get, ref)

    def _get(self, ref: str) -> Dataset:
        return self._with_paths(self._catalog.get(ref))

    async def page(self, name: str, page_size: int, page_token: str) -> Page:
        """See Datasets."""
        return await asyncio.to_thread(self._catalog.page, name, page_size, page_token)

    async def delete(self, ref: str, force: bool) -> int:
        """See Datasets."""
        return await asyncio.to_thread(self._delete, ref, force)

    def _delete(self, ref: str, force: bool) -> int:
        names.require_version(ref)
        with removal.dropping(self._blobs, self._grace_s) as drop:
            drop.digests += self._catalog.delete(drop.sql, ref, force)
        return drop.freed_bytes

    async def read(self, share: Share) -> AsyncGenerator[Chunk, None]:
        """See Datasets. A chunk is made when the one before was taken."""
        chunks = await asyncio.to_thread(self._open, share)
        step: asyncio.Future[Chunk | None] | None = None
        try:
            while True:
                step = asyncio.ensure_future(asyncio.to_thread(next, chunks, None))
                chunk = await asyncio.shield(step)
                if chunk is None:
                    return
                yield chunk
        finally:
            if step is not None:
                await asyncio.wait([step])  # a generator that runs cannot be closed
            await asyncio.shield(asyncio.to_thread(chunks.close))

    def _open(self, share: Share) -> Generator[Chunk, None, None]:
        from llmos.servers.storage.data.stream import chunks

        return chunks(self._blobs, self._catalog.get(share.ref), share)

    def _with_paths(self, dataset: Dataset) -> Dataset:
        """Say where the files are that others can read as they are: not sealed, not shared ones."""
        special = self._blobs.special([split.sha256 for split in dataset.splits])
        splits = [
            split
            if split.sha256 in special
            else replace(split, path=self._blobs.file(split.sha256))
            for split in dataset.splits
        ]
        return replace(dataset, splits=tuple(splits))
