"""The Uploads and Maintenance interfaces over gRPC, so that one suite tests store and server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from typing import TypeVar

import grpc

from llmos.api.storage.v1 import maintenance_pb2 as mpb
from llmos.api.storage.v1 import maintenance_pb2_grpc, uploads_pb2_grpc
from llmos.api.storage.v1 import uploads_pb2 as upb
from llmos.lib.rpc import from_rpc_error
from llmos.servers.storage.blobs.uploads_base import Part, Upload, Uploads
from llmos.servers.storage.upkeep.base import (
    Collected,
    Finding,
    Kind,
    Maintenance,
    Rekeyed,
    Restored,
    Space,
    Step,
    Summary,
)

T = TypeVar("T")


async def own(call: Awaitable[T]) -> T:
    """Return the answer; raise our errors."""
    try:
        return await call
    except grpc.aio.AioRpcError as exc:
        raise from_rpc_error(exc) from exc


class RemoteUploads(Uploads):
    """Calls a storage server."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = uploads_pb2_grpc.UploadsStub(channel)

    async def create(self, sha256: str, size: int) -> Upload | None:
        request = upb.CreateUploadRequest(sha256=sha256, size=size)
        answer = await own(self.stub.CreateUpload(request))
        return None if answer.existed else _upload(answer.upload)

    async def append(self, id: str, parts: AsyncIterator[Part]) -> int:
        async def requests() -> AsyncIterator[upb.AppendUploadRequest]:
            yield upb.AppendUploadRequest(id=id)
            async for part in parts:
                yield upb.AppendUploadRequest(offset=part.offset, data=part.data, crc32=part.crc32)

        return (await own(self.stub.AppendUpload(requests()))).offset

    async def get(self, id: str) -> Upload:
        return _upload((await own(self.stub.GetUpload(upb.GetUploadRequest(id=id)))).upload)

    async def list(self) -> Sequence[Upload]:
        answer = await own(self.stub.ListUploads(upb.ListUploadsRequest()))
        return [_upload(upload) for upload in answer.uploads]

    async def commit(self, id: str) -> tuple[str, int]:
        answer = await own(self.stub.CommitUpload(upb.CommitUploadRequest(id=id)))
        return answer.sha256, answer.size

    async def abort(self, id: str) -> None:
        await own(self.stub.AbortUpload(upb.AbortUploadRequest(id=id)))


def _upload(upload: upb.Upload) -> Upload:
    return Upload(upload.id, upload.sha256, upload.size, upload.offset, upload.expires_unix_s)


class RemoteMaintenance(Maintenance):
    """Calls a storage server."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = maintenance_pb2_grpc.MaintenanceStub(channel)

    async def df(self) -> Space:
        found = await own(self.stub.Df(mpb.DfRequest()))
        values = {
            field.name: getattr(found, field.name)
            for field in found.DESCRIPTOR.fields
            if field.name not in ("scrubbed_unix_s", "direct_address")
        }
        return Space(**values, scrubbed=found.scrubbed_unix_s)

    async def fsck(
        self, repair: bool, quick: bool
    ) -> AsyncGenerator[Step | Finding | Summary, None]:
        call = self.stub.Fsck(mpb.FsckRequest(repair=repair, quick=quick))
        try:
            async for step in call:
                if step.HasField("progress"):
                    yield _step(step.progress)
                elif step.HasField("finding"):
                    yield _finding(step.finding)
                else:
                    s = step.summary
                    yield Summary(s.blobs, s.checked_bytes, s.findings, s.repaired, s.quarantined)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()

    async def collect(self, grace_s: float | None) -> Collected:
        request = mpb.CollectGarbageRequest(grace_s=grace_s)
        done = await own(self.stub.CollectGarbage(request))
        return Collected(done.blobs, done.freed_bytes, done.uploads)

    async def scrub(
        self, bytes_per_s: int, older_than_s: float
    ) -> AsyncGenerator[Step | Finding, None]:
        request = mpb.ScrubRequest(bytes_per_s=bytes_per_s, older_than_s=older_than_s)
        call = self.stub.Scrub(request)
        try:
            async for step in call:
                if step.HasField("progress"):
                    yield _step(step.progress)
                else:
                    yield _finding(step.finding)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()

    async def backup(self) -> AsyncGenerator[Step | bytes, None]:
        call = self.stub.Backup(mpb.BackupRequest())
        try:
            async for step in call:
                yield _step(step.progress) if step.HasField("progress") else step.data
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()

    async def restore(self, data: AsyncIterator[bytes]) -> Restored:
        async def requests() -> AsyncIterator[mpb.RestoreRequest]:
            async for piece in data:
                yield mpb.RestoreRequest(data=piece)

        done = await own(self.stub.Restore(requests()))
        return Restored(done.blobs, done.rows, done.made_unix_s)

    async def rekey(self) -> AsyncGenerator[Rekeyed, None]:
        call = self.stub.Rekey(mpb.RekeyRequest())
        try:
            async for step in call:
                yield Rekeyed(_step(step.progress), step.rewrapped, step.sealed)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()


def _step(progress: mpb.Progress) -> Step:
    return Step(progress.stage, progress.done_bytes, progress.total_bytes)


def _finding(found: mpb.Finding) -> Finding:
    return Finding(Kind(found.kind), found.subject, found.what, found.done, tuple(found.harms))
