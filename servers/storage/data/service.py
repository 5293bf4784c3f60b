"""The gRPC face of data sets: converts and delegates, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from enum import IntEnum
from typing import Any, TypeVar

from llmos.api.storage.v1 import data_pb2 as pb
from llmos.api.storage.v1 import data_pb2_grpc
from llmos.lib.call import same_host
from llmos.lib.publish import Tell, nobody
from llmos.servers.storage.data.base import Datasets
from llmos.servers.storage.data.faults import bad_option
from llmos.servers.storage.data.model import (
    Cleaning,
    DataFormat,
    Dataset,
    Mode,
    Order,
    Reading,
    Report,
    Rule,
    Share,
    Splitting,
)
from llmos.servers.storage.model import Progress

E = TypeVar("E", bound=IntEnum)


class DatasetsService(data_pb2_grpc.DatasetsServicer):
    """Serves data sets."""

    def __init__(self, datasets: Datasets, tell: Tell = nobody) -> None:
        """Delegate to `datasets`; tell of new versions (event dataset.registered)."""
        self._datasets = datasets
        self._tell = tell

    async def ImportDataset(
        self, request: pb.ImportDatasetRequest, context: Any
    ) -> AsyncIterator[pb.ImportDatasetResponse]:
        """Import, with progress."""
        last = Progress("")
        async with aclosing(self._datasets.import_dataset(to_order(request))) as steps:
            async for step in steps:
                if isinstance(step, Progress):
                    last = step
                    yield pb.ImportDatasetResponse(
                        stage=step.stage, done_bytes=step.done_bytes, total_bytes=step.total_bytes
                    )
                    continue
                made = step.dataset
                if not step.existed:
                    self._tell(
                        "dataset.registered",
                        dataset=made.ref,
                        source=made.lineage.source,
                        job=made.lineage.job,
                        rows=made.rows,
                        size_bytes=made.size_bytes,
                    )
                yield pb.ImportDatasetResponse(
                    stage="existed already" if step.existed else "registered",
                    done_bytes=last.total_bytes,
                    total_bytes=last.total_bytes,
                    dataset=to_proto(made, same_host(context)),
                    existed=step.existed,
                )

    async def GetDataset(
        self, request: pb.GetDatasetRequest, context: Any
    ) -> pb.GetDatasetResponse:
        """Find a version."""
        found = await self._datasets.get(request.ref)
        return pb.GetDatasetResponse(dataset=to_proto(found, same_host(context)))

    async def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: Any
    ) -> pb.ListDatasetsResponse:
        """List a page."""
        page = await self._datasets.page(request.name, request.page_size, request.page_token)
        return pb.ListDatasetsResponse(
            datasets=[to_proto(found, False) for found in page.datasets],
            next_page_token=page.next_token,
        )

    async def DeleteDataset(
        self, request: pb.DeleteDatasetRequest, context: Any
    ) -> pb.DeleteDatasetResponse:
        """Delete a version."""
        freed = await self._datasets.delete(request.ref, request.force)
        return pb.DeleteDatasetResponse(freed_bytes=freed)

    async def ReadDataset(
        self, request: pb.ReadDatasetRequest, context: Any
    ) -> AsyncIterator[pb.ReadDatasetResponse]:
        """Stream a share."""
        share = Share(
            ref=request.ref,
            split=request.split,
            worker=request.worker,
            workers=request.workers or 1,
            offset=request.offset,
            limit=request.limit,
            batch_rows=request.batch_rows or 1024,
            columns=tuple(request.columns),
            shuffle_seed=request.shuffle_seed,
            epoch=request.epoch,
        )
        async with aclosing(self._datasets.read(share)) as chunks:
            async for chunk in chunks:
                yield pb.ReadDatasetResponse(
                    data=chunk.data,
                    rows=chunk.rows,
                    next_offset=chunk.next_offset,
                    share_rows=chunk.share_rows,
                )


def to_order(request: pb.ImportDatasetRequest) -> Order:
    """Return the order that a request gives."""
    read, clean, split = request.read, request.cleaning, request.splits
    return Order(
        source=request.source,
        name=request.name,
        reading=Reading(
            format=_known(DataFormat, read.format),
            delimiter=read.delimiter,
            columns=tuple(read.columns),
            no_quotes=read.no_quotes,
            encoding=read.encoding,
            types=dict(read.types),
            text_column=read.text_column,
            label_column=read.label_column,
            content_columns=tuple(read.content_columns),
        ),
        cleaning=Cleaning(
            rules={_known(Rule, s.rule): _known(Mode, s.mode) for s in clean.rules},
            languages=tuple(clean.languages),
            min_chars=clean.min_chars,
            max_chars=clean.max_chars,
        ),
        splitting=Splitting(
            tuple((share.name, share.share) for share in split.shares), split.seed, split.stratify
        ),
        license=request.license,
        job=request.job,
    )


def to_proto(dataset: Dataset, paths: bool) -> pb.Dataset:
    """Return the message for a version; with its files' paths when the caller can open them."""
    lineage = dataset.lineage
    return pb.Dataset(
        name=dataset.name,
        version=dataset.version,
        columns=[pb.Column(name=c.name, type=c.type, shape=c.shape) for c in dataset.columns],
        rows=dataset.rows,
        splits=[
            pb.Split(
                name=s.name,
                rows=s.rows,
                sha256=s.sha256,
                size=s.size,
                path=str(s.path) if paths and s.path else "",
            )
            for s in dataset.splits
        ],
        license=dataset.license,
        lineage=pb.DatasetLineage(
            source=lineage.source, parents=lineage.parents, job=lineage.job, step=lineage.step
        ),
        created_unix_s=dataset.created_unix_s,
        digest=dataset.digest,
        size_bytes=dataset.size_bytes,
        text_column=dataset.text_column,
        label_column=dataset.label_column,
        source_format=pb.DataFormat.ValueType(dataset.format),
        report=_report(dataset.report) if dataset.report else None,
    )


def _report(report: Report) -> pb.CleaningReport:
    return pb.CleaningReport(
        rows_read=report.rows_read,
        rows_kept=report.rows_kept,
        rules=[
            pb.RuleReport(
                rule=pb.Rule.ValueType(r.rule),
                mode=pb.RuleMode.ValueType(r.mode),
                rows=r.rows,
                examples=r.examples,
            )
            for r in report.rules
        ],
        lengths=[
            pb.LengthBucket(**{"from": low, "to": high, "rows": rows})
            for low, high, rows in report.lengths
        ],
        languages=[pb.NamedCount(name=name, rows=rows) for name, rows in report.languages],
        labels=[pb.NamedCount(name=name, rows=rows) for name, rows in report.labels],
    )


def _known(kind: type[E], number: int) -> E:
    """Return an enum's member. Raises BAD_OPTION for a number that is none."""
    try:
        return kind(number)
    except ValueError as exc:
        raise bad_option(f"{number} is not a {kind.__name__}; is the client newer?") from exc
