"""A worker's share of a split as an Arrow IPC stream, in pieces."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pyarrow as pa

from llmos.lib.batches import SplitReader
from llmos.lib.errors import NotFound, OutOfRange
from llmos.lib.shards import share as share_of
from llmos.servers.storage.blobs import Blobs, damaged
from llmos.servers.storage.data.faults import bad_option
from llmos.servers.storage.data.files import BlobFile
from llmos.servers.storage.data.model import Chunk, Dataset, Share, Split
from llmos.servers.storage.names import short

CHUNK = 256 << 10  # bytes of one message: under the kernel's frame limit, over its overhead
MAX_BATCH_ROWS = 1 << 16
MAX_WORKERS = 1 << 20
_DEFAULT = "train"


def split_of(dataset: Dataset, name: str) -> Split:
    """Return a split: "" = the only one, or `train`. Raises NotFound NO_SUCH_SPLIT."""
    if not name and len(dataset.splits) == 1:
        return dataset.splits[0]
    for split in dataset.splits:
        if split.name == (name or _DEFAULT):
            return split
    there = ", ".join(split.name for split in dataset.splits)
    raise NotFound(
        "NO_SUCH_SPLIT",
        f"{dataset.ref} has no split {short(name or _DEFAULT)}; it has {there}.",
    )


def chunks(blobs: Blobs, dataset: Dataset, share: Share) -> Generator[Chunk, None, None]:
    """Open a share and return what yields its pieces; errors of the request are raised at once.

    Raises NO_SUCH_SPLIT, BAD_OPTION, BAD_RANGE, BLOB_DAMAGED.
    """
    split = split_of(dataset, share.split)
    if not 0 <= share.worker < share.workers <= MAX_WORKERS:
        raise bad_option(
            f"Worker {share.worker} of {share.workers} is not there: worker counts from 0, and "
            f"there are at most {MAX_WORKERS:,}."
        )
    if not 0 < share.batch_rows <= MAX_BATCH_ROWS:
        raise bad_option(f"batch_rows {share.batch_rows} is not 1 to {MAX_BATCH_ROWS:,}.")
    known = {column.name for column in dataset.columns}
    for name in share.columns:
        if name not in known:
            raise bad_option(f"{dataset.ref} has no column {short(name)}.")
    if len(set(share.columns)) < len(share.columns):
        raise bad_option("A column is asked for twice.")
    start, stop = share_of(split.rows, share.worker, share.workers)
    rows = stop - start
    if share.offset > rows:
        raise OutOfRange(
            "BAD_RANGE", f"Offset {share.offset} is past the {rows} rows of this share."
        )
    blob = blobs.open(split.sha256)
    try:
        reader = SplitReader(BlobFile(blob), share.columns, share.shuffle_seed, share.epoch)
    except (pa.ArrowException, OSError) as exc:
        blob.close()
        raise damaged(split.sha256, "it is no Parquet any more") from exc
    end = min(stop, start + share.offset + share.limit) if share.limit else stop
    return _generate(reader, split, share, (start, end, rows))


def _generate(
    reader: SplitReader, split: Split, share: Share, span: tuple[int, int, int]
) -> Generator[Chunk, None, None]:
    start, end, rows = span
    sink = _Sink()
    done = share.offset
    try:
        with pa.ipc.new_stream(sink, reader.schema) as stream:
            yield Chunk(sink.take(), 0, done, rows)
            for batch in reader.batches(start + share.offset, end, share.batch_rows):
                stream.write_batch(batch)
                data = sink.take()
                for at in range(0, len(data), CHUNK):
                    last = at + CHUNK >= len(data)
                    done += batch.num_rows if last else 0
                    yield Chunk(data[at : at + CHUNK], batch.num_rows if last else 0, done, 0)
        yield Chunk(sink.take(), 0, done, 0)
    except (pa.ArrowException, OSError) as exc:
        raise damaged(split.sha256, "its pages do not decode") from exc
    finally:
        reader.close()


class _Sink:
    """Collects what Arrow writes."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last time."""
        data = b"".join(self._parts)
        self._parts = []
        return data

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False
