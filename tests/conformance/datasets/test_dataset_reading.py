"""The contract of reading: shares, order, resuming, columns, batches that are small enough."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_world import DataWorld, read_table

from llmos.lib.errors import LLMOSError
from llmos.servers.storage.data.model import Share, Splitting

ROWS = 1000
# The contract itself runs in all worlds; here each way and each database is there once or more.
WORLDS = ["in process, SQLite", "gRPC, PostgreSQL", "kernel, SQLite"]
pytestmark = pytest.mark.parametrize("world", WORLDS, indirect=True)


async def numbers(world: DataWorld, tmp_path: Path) -> str:
    pq.write_table(
        pa.table({"n": range(ROWS), "s": [f"text {n}" for n in range(ROWS)]}),
        tmp_path / "n.parquet",
    )
    return (await world.take(tmp_path / "n.parquet")).dataset.ref


async def test_every_row_exactly_once_for_any_workers(world: DataWorld, tmp_path: Path) -> None:
    ref = await numbers(world, tmp_path)
    for epoch, workers in enumerate((1, 3, 7)):
        for seed in (0, 42):
            found: list[int] = []
            for worker in range(workers):
                share: dict[str, Any] = {"worker": worker, "workers": workers, "shuffle_seed": seed}
                table = await world.table(ref, batch_rows=100, epoch=epoch, **share)
                found += table.column("n").to_pylist()
            assert sorted(found) == list(range(ROWS))
            assert (found == list(range(ROWS))) == (seed == 0)


async def test_order_depends_on_seed_and_epoch_alone(world: DataWorld, tmp_path: Path) -> None:
    ref = await numbers(world, tmp_path)
    orders = [
        (await world.table(ref, shuffle_seed=seed, epoch=epoch)).column("n").to_pylist()
        for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] and orders[0] != orders[3]
    digest = hashlib.sha256(repr(orders[0]).encode()).hexdigest()
    assert (
        digest[:16] == "9ce80d920205be2c"
    )  # for ever: a checkpoint's offset must mean the same rows


async def test_reading_goes_on_at_an_offset(world: DataWorld, tmp_path: Path) -> None:
    ref = await numbers(world, tmp_path)
    asked: dict[str, Any] = {"worker": 1, "workers": 3, "shuffle_seed": 7, "batch_rows": 64}
    whole = (await world.table(ref, **asked)).column("n").to_pylist()
    head = (await world.table(ref, limit=100, **asked)).column("n").to_pylist()
    rest = (await world.table(ref, offset=100, **asked)).column("n").to_pylist()
    assert len(whole) == 333 and head + rest == whole
    assert (await world.table(ref, offset=333, **asked)).num_rows == 0
    with pytest.raises(LLMOSError) as caught:
        await world.table(ref, offset=334, **asked)
    assert caught.value.reason == "BAD_RANGE"


async def test_batches_and_columns(world: DataWorld, tmp_path: Path) -> None:
    ref = await numbers(world, tmp_path)
    chunks = [chunk async for chunk in world.datasets.read(Share(ref, batch_rows=300))]
    assert [c.rows for c in chunks if c.rows] == [300, 300, 300, 100]
    assert chunks[0].share_rows == ROWS
    table = await world.table(ref, columns=("s",))
    assert table.schema.names == ["s"]
    turned = await world.table(ref, columns=("s", "n"))
    assert turned.schema.names == ["s", "n"]


async def test_shares_and_splits_that_are_wrong(world: DataWorld, tmp_path: Path) -> None:
    ref = await numbers(world, tmp_path)
    halves = Splitting((("train", 0.5), ("test", 0.5)))
    made = (await world.take(f"dataset:{ref}", splitting=halves)).dataset
    train = await world.table(made.ref)
    assert train.num_rows == made.splits[0].rows  # of several, train is meant
    for share, reason in (
        (Share(made.ref, "dev"), "NO_SUCH_SPLIT"),
        (Share(ref, worker=3, workers=3), "BAD_OPTION"),
        (Share(ref, batch_rows=65_537), "BAD_OPTION"),
        (Share(ref, columns=("zzz",)), "BAD_OPTION"),
        (Share(ref, columns=("n", "n")), "BAD_OPTION"),
        (Share("none"), "NO_SUCH_DATASET"),
    ):
        with pytest.raises(LLMOSError) as caught:
            await read_table(world.datasets, share)
        assert caught.value.reason == reason


async def test_rows_larger_than_a_message(world: DataWorld, tmp_path: Path) -> None:
    big = ["x" * 3_000_000, "y" * 100, "z" * 3_000_000]
    pq.write_table(pa.table({"s": big}), tmp_path / "big.parquet")
    ref = (await world.take(tmp_path / "big.parquet")).dataset.ref
    assert (await world.table(ref)).column("s").to_pylist() == big


async def test_abandoned_reading_ends(world: DataWorld, tmp_path: Path) -> None:
    ref = await numbers(world, tmp_path)
    chunks = world.datasets.read(Share(ref, batch_rows=10))
    await anext(chunks)
    await chunks.aclose()
    assert (await world.table(ref)).num_rows == ROWS


async def test_damaged_file_is_told(world: DataWorld, tmp_path: Path) -> None:
    ref = await numbers(world, tmp_path)
    path = (await world.datasets.get(ref)).splits[0].path
    assert path is not None
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(LLMOSError) as caught:
        await world.table(ref)
    assert caught.value.reason == "BLOB_DAMAGED"
