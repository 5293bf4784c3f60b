"""Data sets in process, over gRPC or through a kernel, for tests."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest
from remote_registry import RemoteLeases
from ways import reach

from llmos.api.storage.v1 import data_pb2 as pb
from llmos.api.storage.v1 import data_pb2_grpc
from llmos.lib.errors import LLMOSError
from llmos.lib.rpc import from_rpc_error
from llmos.lib.serve import Server
from llmos.servers.storage.binding import Bound
from llmos.servers.storage.data.base import Datasets
from llmos.servers.storage.data.local import LocalDatasets
from llmos.servers.storage.data.model import (
    Chunk,
    Column,
    DataFormat,
    Dataset,
    Imported,
    Lineage,
    Mode,
    Order,
    Page,
    Report,
    Rule,
    RuleReport,
    Share,
    Split,
)
from llmos.servers.storage.data.service import DatasetsService
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.model import Progress
from llmos.servers.storage.registry.base import VersionLeases
from llmos.servers.storage.registry.local import LocalAliases, LocalLeases
from llmos.servers.storage.serving import add_registry


class RemoteDatasets(Datasets):
    """Calls a storage server."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = data_pb2_grpc.DatasetsStub(channel)

    async def import_dataset(self, order: Order) -> AsyncGenerator[Progress | Imported, None]:
        call = self.stub.ImportDataset(to_request(order))
        try:
            async for step in call:
                if step.HasField("dataset"):
                    yield Imported(from_proto(step.dataset), step.existed)
                else:
                    yield Progress(step.stage, step.done_bytes, step.total_bytes)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()

    async def _own(self, call: Any) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc

    async def get(self, ref: str) -> Dataset:
        answer = await self._own(self.stub.GetDataset(pb.GetDatasetRequest(ref=ref)))
        return from_proto(answer.dataset)

    async def page(self, name: str, page_size: int, page_token: str) -> Page:
        request = pb.ListDatasetsRequest(name=name, page_size=page_size, page_token=page_token)
        answer = await self._own(self.stub.ListDatasets(request))
        return Page([from_proto(d) for d in answer.datasets], answer.next_page_token)

    async def delete(self, ref: str, force: bool) -> int:
        request = pb.DeleteDatasetRequest(ref=ref, force=force)
        return int((await self._own(self.stub.DeleteDataset(request))).freed_bytes)

    async def read(self, share: Share) -> AsyncGenerator[Chunk, None]:
        call = self.stub.ReadDataset(
            pb.ReadDatasetRequest(
                ref=share.ref,
                split=share.split,
                worker=share.worker,
                workers=share.workers,
                offset=share.offset,
                limit=share.limit,
                batch_rows=share.batch_rows,
                columns=share.columns,
                shuffle_seed=share.shuffle_seed,
                epoch=share.epoch,
            )
        )
        try:
            async for reply in call:
                yield Chunk(reply.data, reply.rows, reply.next_offset, reply.share_rows)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()


def to_request(order: Order) -> pb.ImportDatasetRequest:
    """Return the message for an order."""
    read, clean, split = order.reading, order.cleaning, order.splitting
    return pb.ImportDatasetRequest(
        source=order.source,
        name=order.name,
        read=pb.ReadOptions(
            format=pb.DataFormat.ValueType(read.format),
            delimiter=read.delimiter,
            columns=read.columns,
            no_quotes=read.no_quotes,
            encoding=read.encoding,
            types=read.types,
            text_column=read.text_column,
            label_column=read.label_column,
            content_columns=read.content_columns,
        ),
        cleaning=pb.CleaningOptions(
            rules=[
                pb.RuleSetting(rule=pb.Rule.ValueType(rule), mode=pb.RuleMode.ValueType(mode))
                for rule, mode in clean.rules.items()
            ],
            languages=clean.languages,
            min_chars=clean.min_chars,
            max_chars=clean.max_chars,
        ),
        splits=pb.SplitOptions(
            shares=[pb.SplitShare(name=name, share=share) for name, share in split.shares],
            seed=split.seed,
            stratify=split.stratify,
        ),
        license=order.license,
        job=order.job,
    )


def from_proto(found: pb.Dataset) -> Dataset:
    """Return the version in a message."""
    lineage, report = found.lineage, found.report
    return Dataset(
        name=found.name,
        version=found.version,
        columns=tuple(Column(c.name, c.type, tuple(c.shape)) for c in found.columns),
        splits=tuple(
            Split(s.name, s.rows, s.sha256, s.size, Path(s.path) if s.path else None)
            for s in found.splits
        ),
        lineage=Lineage(lineage.source, tuple(lineage.parents), lineage.job, lineage.step),
        format=DataFormat(found.source_format),
        license=found.license,
        text_column=found.text_column,
        label_column=found.label_column,
        created_unix_s=found.created_unix_s,
        digest=found.digest,
        report=Report(
            report.rows_read,
            report.rows_kept,
            tuple(
                RuleReport(Rule(r.rule), Mode(r.mode), r.rows, tuple(r.examples))
                for r in report.rules
            ),
            tuple((getattr(b, "from"), b.to, b.rows) for b in report.lengths),
            tuple((c.name, c.rows) for c in report.languages),
            tuple((c.name, c.rows) for c in report.labels),
        )
        if found.HasField("report")
        else None,
    )


@dataclass
class DataWorld:
    """What a test sees."""

    datasets: Datasets
    store: LocalStorage
    state_dir: Path
    leases: VersionLeases

    async def take(self, source: Path | str, **order: Any) -> Imported:
        """Import and return the end."""
        asked = Order(source=str(source), **order)
        steps = [step async for step in self.datasets.import_dataset(asked)]
        assert all(isinstance(step, Progress) for step in steps[:-1])
        assert isinstance(steps[-1], Imported)
        return steps[-1]

    async def fails(self, source: Path | str, **order: Any) -> LLMOSError:
        """Import what must be refused; return the error."""
        with pytest.raises(LLMOSError) as caught:
            await self.take(source, **order)
        assert len(caught.value.message) < 700, caught.value.message
        return caught.value

    async def table(self, ref: str, split: str = "", **share: Any) -> Any:
        """Read a split as a table."""
        return await read_table(self.datasets, Share(ref, split, **share))

    def leftovers(self) -> list[Path]:
        """Return the files of blobs and unfinished work."""
        folder = self.state_dir / "storage"
        return [p for place in ("blobs", "tmp") for p in (folder / place).rglob("*") if p.is_file()]


async def read_table(datasets: Datasets, share: Share) -> Any:
    """Read a share; the chunks are an Arrow IPC stream."""
    data, offset = b"", share.offset
    async for chunk in datasets.read(share):
        assert len(chunk.data) <= 256 << 10
        offset += chunk.rows
        assert chunk.next_offset == offset
        data += chunk.data
    with pa.ipc.open_stream(io.BytesIO(data)) as stream:
        return stream.read_all()


@asynccontextmanager
async def data_world(way: str, state_dir: Path, url: str = "") -> AsyncIterator[DataWorld]:
    """Run data sets; way: `in process`, `gRPC` or `kernel`; url "" = a SQLite file."""
    async with AsyncExitStack() as stack:
        store = LocalStorage(state_dir / "storage", database=url)
        stack.callback(store.close)
        core = LocalDatasets(store.blobs, store.database, blob_grace_s=0)
        stack.callback(core.close)
        leases = LocalLeases(store.database)
        if way == "in process":
            yield DataWorld(core, store, state_dir, leases)
            return

        def add(server: Server) -> None:
            served = Bound(DatasetsService(core))
            server.add(data_pb2_grpc.add_DatasetsServicer_to_server, served)
            add_registry(server, LocalAliases(store.database), leases)

        channel = await reach(stack, way, state_dir, add)
        yield DataWorld(RemoteDatasets(channel), store, state_dir, RemoteLeases(channel))
