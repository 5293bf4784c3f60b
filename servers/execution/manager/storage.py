"""The catalog: versions and files from the storage server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import grpc

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib.bulk import read_blob
from llmos.lib.errors import DataLoss, Unavailable
from llmos.lib.rpc import from_rpc_error
from llmos.servers.execution.manager.model import StoredFile, Version
from llmos.servers.execution.manager.peers import CALL_S, patient

log = logging.getLogger(__name__)
_PAGE = 1000
_FETCH_S = 3600.0
_CHECK_S = 600.0  # storage may read all of a large model once, to see that it is as it was


class StorageCatalog:
    """See seams.Catalog. Keeps copies of files of a storage server on another host in `cache`."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        cache: Path,
        patience_s: float,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Call on `channel`; wait `patience_s` for a storage server that is away.

        progress: called for each piece of a file that is copied.
        """
        self._progress = progress
        self._registry = registry_pb2_grpc.RegistryStub(channel)
        self._blobs = registry_pb2_grpc.BlobsStub(channel)
        self._cache = cache
        self._patience_s = patience_s

    async def resolve(self, ref: str) -> Version:
        """See seams.Catalog."""
        request = pb.GetVersionRequest(ref=ref, load=True)
        answer = await patient(
            lambda: self._registry.GetVersion(request, timeout=_CHECK_S), self._patience_s
        )
        return replace(_version(answer.version), direct=answer.direct_address)

    async def versions(self) -> list[Version]:
        """See seams.Catalog."""
        found: list[Version] = []
        token = ""
        while True:
            request = pb.ListVersionsRequest(page_size=_PAGE, page_token=token)
            page = await patient(
                lambda request=request: self._registry.ListVersions(request, timeout=CALL_S),  # type: ignore[misc]
                self._patience_s,
            )
            found += [_version(v) for v in page.versions]
            token = page.next_page_token
            if not token:
                return found

    async def fetch(self, version: Version) -> Mapping[str, Path]:
        """See seams.Catalog."""
        return {file.name: await self._local(file, version.direct) for file in version.files}

    async def settle(self) -> None:
        """See seams.Catalog. Nothing is held by this one."""

    async def _local(self, file: StoredFile, direct: str) -> Path:
        if file.path and os.access(file.path, os.R_OK):
            return Path(file.path)
        path = self._cache / file.sha256
        if not path.exists():
            self._cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            await self._copy(file, path, direct)
        return path

    async def _copy(self, file: StoredFile, path: Path, direct: str) -> None:
        """Stream a blob into the cache: whole and with the right digest, or not at all."""
        number, name = tempfile.mkstemp(dir=self._cache, prefix=".tmp-")
        try:
            with os.fdopen(number, "wb") as out:
                digest = await self._read_directly(file, out, direct) if direct else ""
                digest = digest or await self._read(file, out)
                out.flush()
                await asyncio.to_thread(os.fsync, out.fileno())
            if digest != file.sha256:
                raise DataLoss("DIGEST_MISMATCH", f"{file.name} arrived damaged from storage.")
            os.chmod(name, 0o400)
            os.replace(name, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)

    async def _read_directly(self, file: StoredFile, out: BinaryIO, address: str) -> str:
        """Read a blob from storage's own address; return its sha256, "" where nobody answers."""
        digest, loop = hashlib.sha256(), asyncio.get_running_loop()

        def take(piece: memoryview) -> None:
            digest.update(piece)
            out.write(piece)
            loop.call_soon_threadsafe(self._progress)

        try:  # in a loop of its own: hashing and writing would hold up this one
            await asyncio.to_thread(asyncio.run, read_blob(address, file.sha256, take))
        except Unavailable as exc:
            log.info("reading through the kernel", extra={"file": file.name, "cause": exc.message})
            out.seek(0)
            out.truncate()
            return ""
        return digest.hexdigest()

    async def _read(self, file: StoredFile, out: BinaryIO) -> str:
        """Read a blob through the kernel; return its sha256."""
        digest = hashlib.sha256()
        request = pb.ReadBlobRequest(sha256=file.sha256)
        try:
            async for piece in self._blobs.ReadBlob(request, timeout=_FETCH_S):
                digest.update(piece.data)
                await asyncio.to_thread(out.write, piece.data)
                self._progress()
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc
        return digest.hexdigest()


def _version(message: pb.ModelVersion) -> Version:
    parents = [p for p in message.lineage.parents if p]
    return Version(
        name=message.name,
        version=message.version,
        format=_word(pb.Format.Name, "FORMAT_", message.format),
        task=_word(pb.Task.Name, "TASK_", message.task),
        context_length=message.context_length,
        created_unix_s=message.created_unix_s,
        base=message.tags.get("base", "") or next(iter(parents), ""),
        files=[StoredFile(f.name, f.sha256, f.size, f.path) for f in message.files],
        aliases=list(message.aliases),
    )


def _word(name_of: object, prefix: str, number: int) -> str:
    """Return an enum value as engines call it, e.g. FORMAT_GGUF as `gguf`; "" when unknown."""
    if number == 0:
        return ""
    try:
        return str(name_of(number)).removeprefix(prefix).lower()  # type: ignore[operator]
    except ValueError:  # of a newer storage server
        return ""
