"""kill -9 during imports of data sets, and of a server that a reader reads from."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
from storage_process import Process, start

from llmos.api.storage.v1 import data_pb2 as pb
from llmos.api.storage.v1 import data_pb2_grpc
from llmos.lib.config import socket_address
from llmos.lib.datasets import DatasetReader

ROWS = 100_000


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="llmos-") as folder:
        yield Path(folder)


def source(state_dir: Path) -> Path:
    path = state_dir / "n.csv"
    path.write_text("n,s\n" + "".join(f"{i},text {i * 7919 % ROWS}\n" for i in range(ROWS)))
    return path


def files(state_dir: Path) -> list[Path]:
    folder = state_dir / "storage"
    return [p for place in ("blobs", "tmp") for p in (folder / place).rglob("*") if p.is_file()]


def test_kill_during_import_leaves_nothing(state_dir: Path) -> None:
    request = pb.ImportDatasetRequest(source=str(source(state_dir)), name="n")
    for delay_s in (0.0, 0.1, 0.25):
        process = start(state_dir)
        assert files(state_dir) == []
        with grpc.insecure_channel(socket_address(state_dir, "storage")) as channel:
            steps = data_pb2_grpc.DatasetsStub(channel).ImportDataset(request)
            first = next(steps)
            time.sleep(delay_s)
            process.kill()
            process.wait()
            with pytest.raises(grpc.RpcError):
                list(steps)
            assert not first.HasField("dataset")
    process = start(state_dir)
    try:
        with grpc.insecure_channel(socket_address(state_dir, "storage")) as channel:
            *_, last = data_pb2_grpc.DatasetsStub(channel).ImportDataset(request)
            assert last.dataset.rows == ROWS and last.dataset.version == 1
    finally:
        process.terminate()
        process.wait(20)


def test_reader_goes_on_after_a_kill(state_dir: Path) -> None:
    process = start(state_dir)
    try:
        with grpc.insecure_channel(socket_address(state_dir, "storage")) as channel:
            request = pb.ImportDatasetRequest(source=str(source(state_dir)), name="n")
            list(data_pb2_grpc.DatasetsStub(channel).ImportDataset(request))
            orders = []
            again: list[Process] = []
            for by_path in (True, False):
                reader = DatasetReader(
                    channel, "n", batch_rows=500, shuffle_seed=3, epoch=1, by_path=by_path
                )
                found: list[int] = []
                for batch in reader:
                    found += batch.column("n").to_pylist()
                    if len(found) == 5_000 and not by_path:
                        process.kill()
                        process.wait()
                        thread = threading.Timer(0.5, lambda: again.append(start(state_dir)))
                        thread.start()
                orders.append(found)
            thread.join()
            (process,) = again
            assert sorted(orders[0]) == list(range(ROWS)) and orders[0] == orders[1]
    finally:
        process.kill()
        process.wait()
