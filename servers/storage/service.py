"""The gRPC face of storage: converts and delegates, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib.call import progress, same_host, through_kernel
from llmos.lib.publish import Tell, nobody
from llmos.servers.storage.base import READ_CHUNK, Storage
from llmos.servers.storage.direct import field, reachable
from llmos.servers.storage.model import (
    Draft,
    File,
    Filters,
    Format,
    Lineage,
    Metric,
    Progress,
    Registered,
    Task,
    Version,
)

Admit = Callable[[Version], None]  # raises when a version may not be loaded
_TICK_S = 1.0
DIRECT_CHUNK = 1 << 20  # bytes of one message: the least work per byte, and any client takes it


class RegistryService(registry_pb2_grpc.RegistryServicer):
    """Serves versions."""

    def __init__(
        self,
        storage: Storage,
        tell: Tell = nobody,
        admit: Admit | None = None,
        direct: str = "",
    ) -> None:
        """Delegate to `storage`; tell of new versions (event version.registered).

        admit: checks, in a thread, the files of a version that a caller is about to load. direct:
        address for fast reads; "" = there is none.
        """
        self._storage = storage
        self._tell = tell
        self._admit = admit
        self._direct = direct

    async def ImportModel(
        self, request: pb.ImportModelRequest, context: Any
    ) -> AsyncIterator[pb.ImportModelResponse]:
        """Import, with progress."""
        last = Progress("")
        async with aclosing(self._storage.import_model(request.source, request.name)) as steps:
            async for step in steps:
                if isinstance(step, Progress):
                    last = step
                    yield pb.ImportModelResponse(
                        stage=step.stage, done_bytes=step.done_bytes, total_bytes=step.total_bytes
                    )
                else:
                    self._registered(step)
                    yield pb.ImportModelResponse(
                        stage="existed already" if step.existed else "registered",
                        done_bytes=last.total_bytes,
                        total_bytes=last.total_bytes,
                        version=to_proto(step.version, same_host(context)),
                        existed=step.existed,
                    )

    async def CreateVersion(
        self, request: pb.CreateVersionRequest, context: Any
    ) -> pb.CreateVersionResponse:
        """Register uploaded files."""
        made = await self._storage.create_version(to_draft(request))
        self._registered(made)
        return pb.CreateVersionResponse(version=to_proto(made.version, same_host(context)))

    async def GetVersion(
        self, request: pb.GetVersionRequest, context: Any
    ) -> pb.GetVersionResponse:
        """Find a version."""
        version = await self._storage.get_version(request.ref)
        if request.load and self._admit is not None:
            checking = asyncio.create_task(asyncio.to_thread(self._admit, version))
            while not (await asyncio.wait([checking], timeout=_TICK_S))[0]:
                progress(context)  # a large file is being read
            checking.result()
        here = same_host(context)
        return pb.GetVersionResponse(
            version=to_proto(version, here), direct_address=reachable(self._direct, here)
        )

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: Any
    ) -> pb.ListVersionsResponse:
        """List a page."""
        filters = Filters(
            Task(request.task), Format(request.format), dict(request.tags), request.search
        )
        page = await self._storage.list_versions(
            request.name, request.page_size, request.page_token, filters
        )
        here = same_host(context)
        return pb.ListVersionsResponse(
            versions=[to_proto(version, here) for version in page.versions],
            next_page_token=page.next_token,
        )

    async def DeleteVersion(
        self, request: pb.DeleteVersionRequest, context: Any
    ) -> pb.DeleteVersionResponse:
        """Delete a version."""
        freed = await self._storage.delete_version(request.ref, request.force)
        return pb.DeleteVersionResponse(freed_bytes=freed)

    async def SetTags(self, request: pb.SetTagsRequest, context: Any) -> pb.SetTagsResponse:
        """Change tags."""
        tags = await self._storage.set_tags(request.ref, dict(request.set), list(request.remove))
        return pb.SetTagsResponse(tags=tags)

    async def GetLineage(
        self, request: pb.GetLineageRequest, context: Any
    ) -> pb.GetLineageResponse:
        """Walk a lineage."""
        walk = await self._storage.lineage(request.ref, request.descendants, request.max_depth)
        nodes = [
            pb.LineageNode(
                ref=node.ref,
                depth=node.depth,
                missing=node.missing,
                lineage=_lineage(node.lineage),
                format=pb.Format.ValueType(node.format),
                created_unix_s=node.created_unix_s,
                dtype=node.dtype,
            )
            for node in walk.nodes
        ]
        return pb.GetLineageResponse(nodes=nodes, truncated=walk.truncated)

    def _registered(self, step: Registered) -> None:
        version = step.version
        if not step.existed:
            self._tell(
                "version.registered",
                model=f"{version.name}@{version.version}",
                source=version.lineage.source,
                job=version.lineage.job,
                size_bytes=version.size_bytes,
            )


class BlobsService(registry_pb2_grpc.BlobsServicer):
    """Serves content-addressed bytes."""

    def __init__(self, storage: Storage) -> None:
        """Delegate to `storage`."""
        self._storage = storage

    async def WriteBlob(
        self, request_iterator: AsyncIterator[pb.WriteBlobRequest], context: Any
    ) -> pb.WriteBlobResponse:
        """Store an upload."""
        first = await anext(aiter(request_iterator), pb.WriteBlobRequest())

        async def pieces() -> AsyncIterator[bytes]:
            yield first.data
            async for request in request_iterator:
                yield request.data
                progress(context)  # the piece before is on its way to the disk

        size, existed = await self._storage.write_blob(first.sha256, pieces())
        return pb.WriteBlobResponse(size=size, existed=existed)

    async def ReadBlob(self, request: pb.ReadBlobRequest, context: Any) -> AsyncIterator[Any]:
        """Stream a range."""
        piece, direct = READ_CHUNK, None
        if not through_kernel(context):
            piece, direct = DIRECT_CHUNK, serialized
        blob = self._storage.read_blob(request.sha256, request.offset, request.length, piece)
        async with aclosing(blob) as pieces:
            async for data in pieces:
                yield pb.ReadBlobResponse(data=data) if direct is None else direct(data)

    async def StatBlobs(self, request: pb.StatBlobsRequest, context: Any) -> pb.StatBlobsResponse:
        """Tell sizes."""
        return pb.StatBlobsResponse(sizes=await self._storage.stat_blobs(list(request.sha256)))


def serialized(data: bytes) -> bytes:
    """Return ReadBlobResponse(data=data), serialized: a third of protobuf's work on the bytes."""
    return b"".join((field(len(data)), data))


def to_proto(version: Version, paths: bool) -> pb.ModelVersion:
    """Return the message for a version; with its files' paths when the caller can open them."""
    about = version.description
    return pb.ModelVersion(
        name=version.name,
        version=version.version,
        format=pb.Format.ValueType(about.format),
        task=pb.Task.ValueType(about.task),
        architecture=about.architecture,
        parameters=about.parameters,
        dtype=about.dtype,
        context_length=about.context_length,
        license=about.license,
        files=[
            pb.File(name=f.name, sha256=f.sha256, size=f.size, path=str(f.path) if paths else "")
            for f in version.files
        ],
        lineage=_lineage(version.lineage),
        metrics=[pb.Metric(name=m.name, value=m.value, unit=m.unit) for m in version.metrics],
        created_unix_s=version.created_unix_s,
        digest=version.digest,
        size_bytes=version.size_bytes,
        tokenizer=about.tokenizer,
        chat_template=about.chat_template,
        tags=version.tags,
        aliases=version.aliases,
        signed_by=version.signed_by,
    )


def _lineage(lineage: Lineage) -> pb.Lineage:
    return pb.Lineage(
        source=lineage.source,
        parents=lineage.parents,
        job=lineage.job,
        step=lineage.step,
        datasets=lineage.datasets,
        code=lineage.code,
    )


def to_draft(request: pb.CreateVersionRequest) -> Draft:
    """Return the draft that a request asks to register; fields read from the files are ignored."""
    asked = request.version
    return Draft(
        name=asked.name,
        files=tuple(File(f.name, f.sha256, 0) for f in asked.files),
        lineage=Lineage(
            asked.lineage.source,
            tuple(asked.lineage.parents),
            asked.lineage.job,
            asked.lineage.step,
            tuple(asked.lineage.datasets),
            asked.lineage.code,
        ),
        metrics=tuple(Metric(m.name, m.value, m.unit) for m in asked.metrics),
        request_id=request.request_id,
        tags=dict(asked.tags),
    )
