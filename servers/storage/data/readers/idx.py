"""IDX arrays (Y. LeCun's MNIST page): images with their labels, or any array a row at a time."""

from __future__ import annotations

import contextlib
import io
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from llmos.servers.storage.data.faults import bad_data
from llmos.servers.storage.data.inputs import Input
from llmos.servers.storage.data.readers.base import BATCH_BYTES, BATCH_ROWS, Context, Parts

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMS = 8
_MAX_ROW = 64 << 20  # bytes


def is_idx(head: bytes) -> bool:
    """Return whether a file that begins so says that it is IDX."""
    return len(head) >= 4 and head[:2] == b"\0\0" and head[2] in _TYPES and 0 < head[3] <= _MAX_DIMS


@dataclass
class _Array:
    """An open IDX file."""

    name: str
    file: io.RawIOBase

    def __post_init__(self) -> None:
        head = self._take(4)
        if not is_idx(head):
            raise bad_data(self.name, "it is not IDX", "name its format by --format")
        self.dims = struct.unpack(f">{head[3]}I", self._take(4 * head[3]))
        self.type = np.dtype(_TYPES[head[2]])
        self.rows, self.shape = self.dims[0], self.dims[1:]
        self.row_bytes = math.prod(self.shape) * self.type.itemsize
        if not 0 < self.row_bytes <= _MAX_ROW:
            raise bad_data(
                self.name,
                f"its header says that a row has {self.row_bytes:,} bytes",
                "fetch the file again",
            )

    def _take(self, count: int) -> bytes:
        """Return exactly `count` bytes. Raises BAD_DATA_FILE."""
        parts = []
        while count and (data := self.file.read(count)):
            parts.append(data)
            count -= len(data)
        if count:
            raise bad_data(self.name, "it ends before its header says", "fetch the file again")
        return b"".join(parts)

    def read(self, rows: int) -> Any:
        """Return the next rows as an array of the host's byte order."""
        data = np.frombuffer(self._take(rows * self.row_bytes), self.type)
        return data.astype(self.type.newbyteorder("=")).reshape(rows, -1)

    def end(self) -> None:
        """Raise BAD_DATA_FILE unless the file ends here."""
        if self.file.read(1):
            raise bad_data(
                self.name, "it goes on after what its header says", "fetch the file again"
            )


def read(files: Sequence[Input], context: Context) -> Parts:
    """Read IDX files: of each split one of rows, and at most one of their labels. See Reader."""
    for split in dict.fromkeys(file.split for file in files):
        yield from _read_split([file for file in files if file.split == split], context)


def _read_split(files: Sequence[Input], context: Context) -> Parts:
    with contextlib.ExitStack() as opened:
        arrays = [
            _Array(file.name, opened.enter_context(contextlib.closing(file.open(context.tick))))
            for file in files
        ]
        data = [array for array in arrays if array.shape]
        flat = [array for array in arrays if not array.shape]
        main = data or flat[:1]
        labels = flat if data else flat[1:]
        if len(main) != 1 or len(labels) > 1:
            raise bad_data(
                files[0].name,
                f"{len(files)} IDX files are not one of images and one of labels",
                "import the folder of one data set",
            )
        array, label = main[0], labels[0] if labels else None
        if label is not None and label.rows != array.rows:
            raise bad_data(
                label.name,
                f"{label.rows:,} labels for {array.rows:,} rows",
                "import files that belong together",
            )
        yield from ((files[0].split, batch) for batch in _batches(array, label))


def _batches(array: _Array, label: _Array | None) -> Iterator[Any]:
    step = max(1, min(BATCH_ROWS, BATCH_BYTES // array.row_bytes))
    for start in range(0, array.rows, step):
        rows = min(step, array.rows - start)
        values = pa.array(array.read(rows).ravel())
        columns, fields = [values], [pa.field("value", values.type)]
        if array.shape:
            columns = [pa.FixedSizeListArray.from_arrays(values, math.prod(array.shape))]
            shape = ",".join(map(str, array.shape))
            fields = [pa.field("image", columns[0].type, metadata={"shape": shape})]
        if label is not None:
            columns.append(pa.array(label.read(rows).ravel()))
            fields.append(pa.field("label", columns[1].type))
        yield pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
    array.end()
    if label is not None:
        label.end()
