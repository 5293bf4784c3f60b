"""Exports, and imports of pickles: the interface, and its implementation beside a LocalStorage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from llmos.servers.storage import importer, names
from llmos.servers.storage.importer import Watch
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.model import Progress, Registered, Version
from llmos.servers.storage.places import convert, push, to_folder
from llmos.servers.storage.signing.book import SignatureBook
from llmos.servers.storage.watched import watched


@dataclass(frozen=True)
class Exported:
    """The end of an export: where it is."""

    location: str


class Exchange(ABC):
    """Takes models out of the store, and brings pickled ones in. See exchange.proto."""

    @abstractmethod
    def export_model(self, ref: str, destination: str) -> AsyncGenerator[Progress | Exported, None]:
        """Write a version to a folder or a registry; yield progress, then where it is."""

    @abstractmethod
    def convert_pickle(self, source: str, name: str) -> AsyncGenerator[Progress | Registered, None]:
        """Convert a checkpoint to safetensors and import that; yield progress, then the version."""


class LocalExchange(Exchange):
    """Implements Exchange in threads of its own."""

    def __init__(self, storage: LocalStorage, transfers: int = 2) -> None:
        """Use `storage`, which lives longer. transfers: how many run at a time, others wait."""
        self._storage = storage
        self._book = SignatureBook(storage.database)
        self._pool = ThreadPoolExecutor(transfers, thread_name_prefix="exchange")

    def close(self) -> None:
        """Wait for running work; calls must have ended or been cancelled."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def export_model(
        self, ref: str, destination: str
    ) -> AsyncGenerator[Progress | Exported, None]:
        """See Exchange."""
        version = await self._storage.get_version(ref)
        async with aclosing(
            watched(self._pool, partial(self._export, version, destination))
        ) as steps:
            async for step in steps:
                yield step

    def _export(self, version: Version, destination: str, watch: Watch) -> Exported:
        if destination.startswith("oci:"):
            return Exported(push.push(version, self._storage.blobs, destination, watch))
        kept = self._book.of(version)
        bundle = kept[-1].bundle if kept else b""
        return Exported(to_folder.export(version, self._storage.blobs, bundle, destination, watch))

    async def convert_pickle(
        self, source: str, name: str
    ) -> AsyncGenerator[Progress | Registered, None]:
        """See Exchange."""
        if name:
            names.check_name(name)
        work = partial(self._convert, source, name)
        async with aclosing(watched(self._pool, work)) as steps:
            async for step in steps:
                yield step

    def _convert(self, source: str, name: str, watch: Watch) -> Registered:
        with convert.converted(source, self._storage.incoming, watch) as found:
            return importer.register(
                self._storage.blobs, self._storage.registry, found, name, watch
            )
