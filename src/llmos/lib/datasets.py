"""Reading a data set, from Python: batches of one worker's share, wherever the files are.

with SyncPort(address) as port:
    for batch in DatasetReader(port.channel, "reviews@3", split="train", worker=0, workers=4):
        texts = batch.column("text").to_pylist()

Needs pyarrow (`pip install 'llmos[client]'`).
"""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from llmos.api.storage.v1 import data_pb2 as pb
from llmos.api.storage.v1 import data_pb2_grpc
from llmos.lib.errors import InvalidArgument, LLMOSError, NotFound, OutOfRange, Unavailable
from llmos.lib.rpc import from_rpc_error
from llmos.lib.shards import share

if TYPE_CHECKING:
    from llmos.lib.batches import SplitReader

_RETRY_S = 0.2


@dataclasses.dataclass
class DatasetReader:
    """Iterates over the record batches of a share; see ReadDataset in data.proto.

    On the storage server's host the file is read by its path, elsewhere it is streamed; a stream
    that breaks is taken up again where it was, for `patience_s` without progress. `offset` counts
    the rows given: kept in a checkpoint, it is where another reader goes on. All iterations read
    the version that `ref` meant at the first.
    """

    channel: grpc.Channel
    ref: str
    split: str = ""
    worker: int = 0
    workers: int = 1
    batch_rows: int = 1024
    columns: Sequence[str] = ()
    shuffle_seed: int = 0
    epoch: int = 0
    offset: int = 0
    by_path: bool = True
    patience_s: float = 60.0

    def __post_init__(self) -> None:
        """Open nothing yet."""
        self._stub = data_pb2_grpc.DatasetsStub(self.channel)
        self._about: pb.Dataset | None = None

    @property
    def about(self) -> pb.Dataset:
        """The version; asked for once. Raises NO_SUCH_DATASET, NO_SUCH_VERSION, BAD_NAME."""
        if self._about is None:
            try:
                answer = self._stub.GetDataset(pb.GetDatasetRequest(ref=self.ref))
            except grpc.RpcError as exc:
                raise from_rpc_error(exc) from exc
            self._about = answer.dataset
            self.ref = f"{answer.dataset.name}@{answer.dataset.version}"
        return self._about

    def __iter__(self) -> Iterator[Any]:
        """Yield pyarrow.RecordBatch from `offset` to the end of the share.

        Raises NO_SUCH_DATASET, NO_SUCH_VERSION, NO_SUCH_SPLIT, BAD_OPTION, BAD_RANGE, BLOB_DAMAGED,
        Unavailable after `patience_s`.
        """
        reader = self._open()
        if reader is None:
            yield from self._stream()
            return
        try:
            start, stop = share(reader.rows, self.worker, self.workers)
            if self.offset > stop - start:
                raise OutOfRange(
                    "BAD_RANGE",
                    f"Offset {self.offset} is past the {stop - start} rows of this share.",
                )
            for batch in reader.batches(start + self.offset, stop, self.batch_rows):
                self.offset += batch.num_rows
                yield batch
        finally:
            reader.close()

    def _open(self) -> SplitReader | None:
        """Open the file by its path; None when it is not there for us."""
        from llmos.lib.batches import SplitReader

        splits = {split.name: split for split in self.about.splits}
        name = self.split or (next(iter(splits)) if len(splits) == 1 else "train")
        if name not in splits:
            raise NotFound(
                "NO_SUCH_SPLIT",
                f"{self.ref} has no split {name[:60]!r}; it has {', '.join(splits)}.",
            )
        if not 0 <= self.worker < self.workers or self.batch_rows < 1:
            raise InvalidArgument(
                "BAD_OPTION",
                f"Worker {self.worker} of {self.workers} with batches of {self.batch_rows} rows "
                "reads nothing: worker counts from 0, batch_rows from 1.",
            )
        path = splits[name].path
        if not self.by_path or not path:
            return None
        try:
            return SplitReader(Path(path), self.columns, self.shuffle_seed, self.epoch)
        except FileNotFoundError:  # deleted meanwhile, or another container: the server knows
            return None
        except KeyError as exc:
            raise InvalidArgument(
                "BAD_OPTION", f"{self.ref} has no column {exc.args[0][:60]!r}."
            ) from exc

    def _stream(self) -> Iterator[Any]:
        last = time.monotonic()
        while True:
            try:
                for batch in self._call():
                    self.offset += batch.num_rows
                    yield batch
                    last = time.monotonic()
                return
            except Unavailable:
                if time.monotonic() - last > self.patience_s:
                    raise
                time.sleep(_RETRY_S)

    def _call(self) -> Iterator[Any]:
        import pyarrow as pa

        call = self._stub.ReadDataset(
            pb.ReadDatasetRequest(
                ref=self.ref,
                split=self.split,
                worker=self.worker,
                workers=self.workers,
                offset=self.offset,
                batch_rows=self.batch_rows,
                columns=self.columns,
                shuffle_seed=self.shuffle_seed,
                epoch=self.epoch,
            )
        )
        replies = _Replies(call)
        try:
            with pa.ipc.open_stream(replies) as stream:
                yield from stream
        except (pa.ArrowException, OSError) as exc:  # of a stream that was cut
            raise replies.error or Unavailable("CUT", f"The stream is cut ({exc}).") from exc
        finally:
            call.cancel()


class _Replies(io.RawIOBase):
    """The data of a call's replies as a file; a reply is asked for when it is needed."""

    def __init__(self, call: Any) -> None:
        self._call = iter(call)
        self._data = memoryview(b"")
        self.error: LLMOSError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._data:
            try:
                reply = next(self._call, None)
            except grpc.RpcError as exc:
                self.error = from_rpc_error(exc)
                raise self.error from exc
            if reply is None:
                return 0
            self._data = memoryview(reply.data)
        count = min(len(buffer), len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


def to_numpy(batch: Any) -> dict[str, Any]:
    """Return a batch's columns as NumPy arrays; arrays that were stored with a shape have it."""
    import pyarrow as pa

    found = {}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if pa.types.is_fixed_size_list(field.type):
            shape = (field.metadata or {}).get(b"shape", b"").decode()
            dims = [int(n) for n in shape.split(",")] if shape else [field.type.list_size]
            flat = column.flatten().to_numpy(zero_copy_only=False)
            found[field.name] = flat.reshape(len(column), *dims)
        else:
            found[field.name] = column.to_numpy(zero_copy_only=False)
    return found
