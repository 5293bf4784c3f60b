"""The Storage interface over gRPC, so that one suite tests the store and the server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import grpc

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib.rpc import from_rpc_error
from llmos.servers.storage.base import ALL, Storage
from llmos.servers.storage.model import (
    Description,
    Draft,
    File,
    Filters,
    Format,
    Lineage,
    Metric,
    Page,
    Progress,
    Registered,
    Task,
    Version,
)
from llmos.servers.storage.registry.model import LineageNode, LineageWalk

T = TypeVar("T")


class RemoteStorage(Storage):
    """Calls a storage server."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.registry = registry_pb2_grpc.RegistryStub(channel)
        self.blobs = registry_pb2_grpc.BlobsStub(channel)

    async def import_model(
        self, source: str, name: str
    ) -> AsyncGenerator[Progress | Registered, None]:
        call = self.registry.ImportModel(pb.ImportModelRequest(source=source, name=name))
        try:
            async for step in call:
                if step.HasField("version"):
                    yield Registered(from_proto(step.version), step.existed)
                else:
                    yield Progress(step.stage, step.done_bytes, step.total_bytes)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()

    async def create_version(self, draft: Draft) -> Registered:
        lineage = draft.lineage
        version = pb.ModelVersion(
            name=draft.name,
            files=[pb.File(name=f.name, sha256=f.sha256) for f in draft.files],
            lineage=pb.Lineage(
                source=lineage.source,
                parents=lineage.parents,
                job=lineage.job,
                step=lineage.step,
                datasets=lineage.datasets,
                code=lineage.code,
            ),
            tags=draft.tags,
            metrics=[pb.Metric(name=m.name, value=m.value, unit=m.unit) for m in draft.metrics],
        )
        before = (await self.list_versions(draft.name, 1000, "")).versions if version.name else []
        request = pb.CreateVersionRequest(version=version, request_id=draft.request_id)
        made = from_proto((await _own(self.registry.CreateVersion(request))).version)
        return Registered(made, made.ref in {v.ref for v in before})

    async def get_version(self, ref: str) -> Version:
        return from_proto(
            (await _own(self.registry.GetVersion(pb.GetVersionRequest(ref=ref)))).version
        )

    async def list_versions(
        self, name: str, page_size: int, page_token: str, filters: Filters = ALL
    ) -> Page:
        request = pb.ListVersionsRequest(
            name=name,
            page_size=page_size,
            page_token=page_token,
            task=pb.Task.ValueType(filters.task),
            format=pb.Format.ValueType(filters.format),
            tags=filters.tags,
            search=filters.search,
        )
        answer = await _own(self.registry.ListVersions(request))
        return Page([from_proto(v) for v in answer.versions], answer.next_page_token)

    async def delete_version(self, ref: str, force: bool) -> int:
        request = pb.DeleteVersionRequest(ref=ref, force=force)
        return (await _own(self.registry.DeleteVersion(request))).freed_bytes

    async def set_tags(
        self, ref: str, added: Mapping[str, str], removed: Sequence[str]
    ) -> Mapping[str, str]:
        request = pb.SetTagsRequest(ref=ref, set=added, remove=removed)
        return dict((await _own(self.registry.SetTags(request))).tags)

    async def lineage(self, ref: str, descendants: bool, max_depth: int) -> LineageWalk:
        request = pb.GetLineageRequest(ref=ref, descendants=descendants, max_depth=max_depth)
        answer = await _own(self.registry.GetLineage(request))
        nodes = [
            LineageNode(
                n.ref,
                n.depth,
                n.missing,
                _lineage(n.lineage),
                Format(n.format),
                n.created_unix_s,
                n.dtype,
            )
            for n in answer.nodes
        ]
        return LineageWalk(nodes, answer.truncated)

    async def write_blob(self, sha256: str, data: AsyncIterator[bytes]) -> tuple[int, bool]:
        async def requests() -> AsyncIterator[pb.WriteBlobRequest]:
            yield pb.WriteBlobRequest(sha256=sha256)
            async for piece in data:
                yield pb.WriteBlobRequest(data=piece)

        answer = await _own(self.blobs.WriteBlob(requests()))
        return answer.size, answer.existed

    async def read_blob(
        self, sha256: str, offset: int, length: int, piece: int = 0
    ) -> AsyncGenerator[bytes, None]:
        call = self.blobs.ReadBlob(pb.ReadBlobRequest(sha256=sha256, offset=offset, length=length))
        try:
            async for answer in call:
                yield answer.data
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()

    async def stat_blobs(self, digests: Sequence[str]) -> list[int]:
        answer = await _own(self.blobs.StatBlobs(pb.StatBlobsRequest(sha256=digests)))
        return list(answer.sizes)


async def _own(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as exc:
        raise from_rpc_error(exc) from exc


def from_proto(version: pb.ModelVersion) -> Version:
    """Return the version in a message."""
    return Version(
        name=version.name,
        version=version.version,
        description=Description(
            Format(version.format),
            Task(version.task),
            version.architecture,
            version.parameters,
            version.dtype,
            version.context_length,
            version.license,
            version.tokenizer,
            version.chat_template,
        ),
        files=tuple(
            File(f.name, f.sha256, f.size, Path(f.path) if f.path else None) for f in version.files
        ),
        lineage=_lineage(version.lineage),
        metrics=tuple(Metric(m.name, m.value, m.unit) for m in version.metrics),
        created_unix_s=version.created_unix_s,
        digest=version.digest,
        tags=dict(version.tags),
        aliases=tuple(version.aliases),
        signed_by=tuple(version.signed_by),
    )


def _lineage(lineage: pb.Lineage) -> Lineage:
    return Lineage(
        lineage.source,
        tuple(lineage.parents),
        lineage.job,
        lineage.step,
        tuple(lineage.datasets),
        lineage.code,
    )
