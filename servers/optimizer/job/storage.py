"""Storage as a job uses it: patient, because a job of an hour must survive a restart of it."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import grpc

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib.errors import DataLoss, LLMOSError, Unavailable
from llmos.lib.rpc import from_rpc_error

T = TypeVar("T")
_PATIENCE_S = 300.0
_TIMEOUT_S = 60.0
_CHECK_S = 600.0  # storage may read all of a large model once, to see that it is as it was
_CHUNK = 256 << 10
log = logging.getLogger(__name__)


class Storage:
    """Registry and Blobs over a channel. Methods raise what storage says, Unavailable last."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Call storage over `channel`."""
        self._registry: registry_pb2_grpc.RegistryAsyncStub = registry_pb2_grpc.RegistryStub(
            channel
        )
        self._blobs: registry_pb2_grpc.BlobsAsyncStub = registry_pb2_grpc.BlobsStub(channel)

    async def version(self, ref: str) -> pb.ModelVersion:
        """Return a version."""

        async def call() -> pb.GetVersionResponse:
            request = pb.GetVersionRequest(ref=ref, load=True)
            return await self._registry.GetVersion(request, timeout=_CHECK_S)

        return (await patiently(call)).version

    async def lay_out(self, version: pb.ModelVersion, folder: Path) -> dict[str, Path]:
        """Put a version's files under `folder` by their names: as links where storage is near.

        Returns them by name. Files that are there from an earlier try stay.
        """
        paths = {}
        for file in version.files:
            paths[file.name] = folder / file.name
            await self.fetch(file, paths[file.name])
        return paths

    async def fetch(self, file: pb.File, target: Path) -> None:
        """Put a file at `target`, if it is not there: as a link where storage is near."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            return
        target.unlink(missing_ok=True)  # a link to what is gone
        if file.path and Path(file.path).is_file():
            target.symlink_to(file.path)
        else:
            await patiently(functools.partial(self._read, file, target))

    async def _read(self, file: pb.File, target: Path) -> None:
        digest = hashlib.sha256()
        partial = target.with_name(target.name + ".partial")
        with partial.open("wb") as out:
            async for piece in self._blobs.ReadBlob(pb.ReadBlobRequest(sha256=file.sha256)):
                digest.update(piece.data)
                await asyncio.to_thread(out.write, piece.data)
        if digest.hexdigest() != file.sha256:
            raise DataLoss("DIGEST_MISMATCH", f"{file.name} came damaged from storage; try again.")
        partial.replace(target)

    async def write(self, path: Path) -> str:
        """Store a file; return its sha256."""
        sha256 = await asyncio.to_thread(_digest, path)

        async def messages() -> AsyncIterator[pb.WriteBlobRequest]:
            yield pb.WriteBlobRequest(sha256=sha256)
            with path.open("rb") as file:
                while data := await asyncio.to_thread(file.read, _CHUNK):
                    yield pb.WriteBlobRequest(data=data)

        async def call() -> pb.WriteBlobResponse:
            return await self._blobs.WriteBlob(messages())

        await patiently(call)
        return sha256

    async def register(self, version: pb.ModelVersion, request_id: str) -> str:
        """Register a version; return `name@version`. The same request_id registers it once."""

        async def call() -> pb.CreateVersionResponse:
            request = pb.CreateVersionRequest(version=version, request_id=request_id)
            return await self._registry.CreateVersion(request, timeout=_TIMEOUT_S)

        made = (await patiently(call)).version
        return f"{made.name}@{made.version}"


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Make an idempotent call, again while storage is not there."""
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + _PATIENCE_S, 0.2
    while True:
        try:
            return await call()
        except grpc.RpcError as exc:
            error: LLMOSError = from_rpc_error(exc)
            if not isinstance(error, Unavailable) or loop.time() > until:
                raise error from exc
            log.info("waiting for storage", extra={"error": error.message})
        await asyncio.sleep(pause)
        pause = min(pause * 2, 5.0)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
