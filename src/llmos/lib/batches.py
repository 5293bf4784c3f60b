"""Record batches out of a Parquet file, in a chosen order; needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmos.lib.shards import Order, Piece

MAX_BATCH_BYTES = 32 << 20


class SplitReader:
    """One split of a data set. Holds one row group in memory at a time."""

    def __init__(
        self,
        file: Path | Any,
        columns: Sequence[str] = (),
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        """Open a Parquet file: a path, or a seekable file, which belongs to this from now on.

        columns: only these, in this order; () = all. Raises KeyError with the name of one that is
        not there, pa.ArrowInvalid or OSError when the file is not whole.
        """
        self._file = pq.ParquetFile(
            file, memory_map=isinstance(file, Path), page_checksum_verification=True
        )
        schema = self._file.schema_arrow
        for name in columns:
            if name not in schema.names:
                self.close()
                raise KeyError(name)
        self.columns = list(columns) or list(schema.names)
        self.schema: Any = pa.schema(
            [schema.field(name) for name in self.columns], metadata=schema.metadata
        )
        about = self._file.metadata
        self.rows: int = about.num_rows
        groups = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
        self._order = Order(groups, seed, epoch)
        self._held: tuple[int, Any] = (-1, None)

    def close(self) -> None:
        """Close the file."""
        self._file.close(force=True)

    def batches(self, start: int, stop: int, batch_rows: int) -> Iterator[Any]:
        """Yield the positions [start, stop) as record batches.

        Each has `batch_rows` rows, fewer at the end and where it would be over 32 MiB.
        """
        waiting: list[Any] = []
        count = size = 0
        for piece in self._order.pieces(start, stop):
            at = piece.start
            while at < piece.stop:
                most = min(batch_rows - count, piece.stop - at)
                part = self._rows(Piece(piece.group, at, at + most))
                waiting.append(part)
                at, count, size = at + most, count + most, size + part.nbytes
                if count == batch_rows or size >= MAX_BATCH_BYTES:
                    yield _joined(waiting)
                    waiting, count, size = [], 0, 0
        if waiting:
            yield _joined(waiting)

    def _rows(self, piece: Piece) -> Any:
        if self._held[0] != piece.group:
            self._held = (-1, None)  # before the next is read: never two at a time
            table = self._file.read_row_group(piece.group, self.columns, use_threads=False)
            self._held = (piece.group, table.select(self.columns))
        table = self._held[1]
        rows = self._order.rows(piece)
        if rows is None:
            return table.slice(piece.start, piece.stop - piece.start)
        return table.take(pa.array(rows))


def _joined(tables: list[Any]) -> Any:
    table = pa.concat_tables(tables).combine_chunks()
    return table.to_batches()[0]
