"""Rows of a data set version for measuring: some hundreds, in memory, always the same ones."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from llmos.api.optimizer.v1 import compress_pb2
from llmos.api.storage.v1 import data_pb2, data_pb2_grpc
from llmos.lib.datasets import to_numpy
from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.servers.optimizer.job import corpus
from llmos.servers.optimizer.job.storage import patiently

ROWS = 256
_SEED = 1


@dataclass(frozen=True)
class Rows:
    """Inputs, texts or arrays of one shape, with other columns beside them."""

    inputs: Sequence[Any]
    ref: str = ""  # the data set version; "" = the reference manual
    split: str = ""
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    label_column: str = ""

    @property
    def texts(self) -> bool:
        """Say whether the inputs are texts."""
        return bool(self.inputs) and isinstance(self.inputs[0], str)


async def read(
    channel: grpc.aio.Channel,
    data: compress_pb2.Data,
    ref: str,
    *,
    learn: bool = False,
    beside: Sequence[str] = (),
) -> Rows:
    """Return rows from all over a split; learn: of that to learn from, if there are several.

    ref: the version that `data.dataset` meant when the job was submitted. beside: other columns;
    an empty name stands for the label's. Raises InvalidArgument BAD_SPEC naming a column or split,
    FailedPrecondition TOO_FEW_ROWS, and what storage says.
    """
    count = data.rows or ROWS
    if not ref:
        return Rows(corpus.texts(count))
    stub: data_pb2_grpc.DatasetsAsyncStub = data_pb2_grpc.DatasetsStub(channel)
    found = await about(channel, ref)
    split = _split(found, data.split, learn)
    given = data.input or _input(found)
    others = [name or found.label_column for name in beside]
    for name in (given, *others):
        if name not in (column.name for column in found.columns):
            have = ", ".join(column.name for column in found.columns)
            raise InvalidArgument("BAD_SPEC", f"{ref} has no column {name[:60]!r}; it has {have}.")
    wanted = data_pb2.ReadDatasetRequest(
        ref=ref,
        split=split,
        limit=count,
        columns=list(dict.fromkeys([given, *others])),
        shuffle_seed=_SEED,  # the first of a split that is sorted by its labels say little of it
    )

    async def rows() -> bytes:
        pieces = [answer.data async for answer in stub.ReadDataset(wanted)]
        return b"".join(pieces)

    columns = _columns(await patiently(rows))
    if not len(columns[given]):
        raise FailedPrecondition("TOO_FEW_ROWS", f"Split {split} of {ref} has no rows.")
    return Rows(
        inputs=columns[given],
        ref=ref,
        split=split,
        columns={name: columns[name] for name in others},
        label_column=found.label_column,
    )


async def about(channel: grpc.aio.Channel, ref: str) -> data_pb2.Dataset:
    """Return what a data set version is. Raises what storage says."""
    stub: data_pb2_grpc.DatasetsAsyncStub = data_pb2_grpc.DatasetsStub(channel)

    async def call() -> data_pb2.GetDatasetResponse:
        return await stub.GetDataset(data_pb2.GetDatasetRequest(ref=ref), timeout=60)

    return (await patiently(call)).dataset


def _split(found: data_pb2.Dataset, asked: str, learn: bool) -> str:
    names = [split.name for split in found.splits]
    if asked and asked not in names:
        raise InvalidArgument(
            "BAD_SPEC",
            f"{found.name}@{found.version} has no split {asked[:60]!r}; it has {', '.join(names)}.",
        )
    usual = "train" if learn else "test"
    return asked or (usual if usual in names else names[0])


def _input(found: data_pb2.Dataset) -> str:
    if found.text_column:
        return found.text_column
    for column in found.columns:
        if column.shape or column.type.startswith("fixed_size_list"):
            return column.name
    raise InvalidArgument(
        "BAD_SPEC",
        f"{found.name}@{found.version} has neither a text nor an array column; name one in "
        "data.input.",
    )


def _columns(stream: bytes) -> dict[str, list[Any]]:
    import pyarrow as pa

    found: dict[str, list[Any]] = {}
    with pa.ipc.open_stream(io.BytesIO(stream)) as reader:
        for name in reader.schema.names:
            found[name] = []
        for batch in reader:
            for name, values in to_numpy(batch).items():
                found[name].extend(values)
    return found
