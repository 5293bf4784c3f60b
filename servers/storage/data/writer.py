"""Parquet files being written into the store's staging, one for each split."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmos.servers.storage.blobs.staging import Staged, Staging, Writer
from llmos.servers.storage.data.model import Split

GROUP_BYTES = 8 << 20
GROUP_ROWS = 64 << 10


class _Sink:
    """What Arrow writes to: hashes and stores on the way."""

    closed = False

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._at = 0
        self.given_up = False

    def write(self, data: Any) -> int:
        if not self.given_up:
            self._writer.write(bytes(data))
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Do nothing: Arrow flushes at its end, and the file is made durable by its own."""

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


class SplitWriter:
    """One split's file. Holds less than a row group in memory."""

    def __init__(self, name: str, schema: Any, staging: Staging) -> None:
        """Begin the file."""
        self.name = name
        self._staging = staging
        self._schema = schema
        self._writer = staging.writer()
        self._sink = _Sink(self._writer)
        self._parquet = pq.ParquetWriter(
            self._sink,
            schema,
            compression="zstd",
            write_statistics=False,
            write_page_checksum=True,
        )
        self._waiting: list[Any] = []
        self._rows = self._bytes = self.rows = 0

    def write(self, batch: Any) -> None:
        """Append rows. Raises DISK_FULL, READ_ONLY."""
        while batch.num_rows:
            taken = batch.slice(0, GROUP_ROWS - self._rows)
            batch = batch.slice(taken.num_rows)
            self._waiting.append(taken)
            self._rows += taken.num_rows
            self._bytes += taken.nbytes
            if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
                self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting, schema=self._schema)
            self._parquet.write_table(table, row_group_size=max(1, self._rows))
            self.rows += self._rows
        self._waiting, self._rows, self._bytes = [], 0, 0

    def close(self) -> None:
        """Give up what was not ended; the file goes with the staging."""
        self._sink.given_up = True  # Arrow would write its footer whatever happened
        self._parquet.close()

    def end(self) -> Staged:
        """End the file and make it durable; it goes with the staging unless it is listed there."""
        self._flush()
        self._parquet.close()
        return self._writer.finish()

    def finish(self) -> Split:
        """End the file, to be kept."""
        staged = self.end()
        self._staging.staged.append(staged)
        return Split(self.name, self.rows, staged.sha256, staged.size)
