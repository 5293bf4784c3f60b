"""The gRPC face of uploads: converts and delegates, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from llmos.api.storage.v1 import uploads_pb2 as pb
from llmos.api.storage.v1 import uploads_pb2_grpc
from llmos.lib.call import progress
from llmos.servers.storage.blobs.uploads_base import Part, Upload, Uploads


class UploadsService(uploads_pb2_grpc.UploadsServicer):
    """Serves uploads."""

    def __init__(self, uploads: Uploads) -> None:
        """Delegate to `uploads`."""
        self._uploads = uploads

    async def CreateUpload(
        self, request: pb.CreateUploadRequest, context: Any
    ) -> pb.CreateUploadResponse:
        """Begin or find."""
        upload = await self._uploads.create(request.sha256, request.size)
        if upload is None:
            return pb.CreateUploadResponse(existed=True)
        return pb.CreateUploadResponse(upload=to_proto(upload))

    async def AppendUpload(
        self, request_iterator: AsyncIterator[pb.AppendUploadRequest], context: Any
    ) -> pb.AppendUploadResponse:
        """Add bytes."""
        first = await anext(aiter(request_iterator), pb.AppendUploadRequest())

        def part(request: pb.AppendUploadRequest) -> Part:
            crc32 = request.crc32 if request.HasField("crc32") else None
            return Part(request.offset, request.data, crc32)

        async def parts() -> AsyncIterator[Part]:
            if first.data:
                yield part(first)
            async for request in request_iterator:
                yield part(request)
                progress(context)  # the part before is on its way to the disk

        return pb.AppendUploadResponse(offset=await self._uploads.append(first.id, parts()))

    async def GetUpload(self, request: pb.GetUploadRequest, context: Any) -> pb.GetUploadResponse:
        """Tell how far it is."""
        return pb.GetUploadResponse(upload=to_proto(await self._uploads.get(request.id)))

    async def ListUploads(
        self, request: pb.ListUploadsRequest, context: Any
    ) -> pb.ListUploadsResponse:
        """List."""
        return pb.ListUploadsResponse(uploads=[to_proto(u) for u in await self._uploads.list()])

    async def CommitUpload(
        self, request: pb.CommitUploadRequest, context: Any
    ) -> pb.CommitUploadResponse:
        """Make it a blob."""
        sha256, size = await self._uploads.commit(request.id)
        return pb.CommitUploadResponse(sha256=sha256, size=size)

    async def AbortUpload(
        self, request: pb.AbortUploadRequest, context: Any
    ) -> pb.AbortUploadResponse:
        """Give it up."""
        await self._uploads.abort(request.id)
        return pb.AbortUploadResponse()


def to_proto(upload: Upload) -> pb.Upload:
    """Return the message for an upload."""
    return pb.Upload(
        id=upload.id,
        sha256=upload.sha256,
        size=upload.size,
        offset=upload.offset,
        expires_unix_s=upload.expires,
    )
