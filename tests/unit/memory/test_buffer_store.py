from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.lib.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted
from llmos.servers.memory import shm
from llmos.servers.memory.buffers import BufferStore
from llmos.servers.memory.record import Buffer
from llmos.servers.memory.shm import PAGE, Directory, charge

Make = Callable[..., BufferStore]


def names(store: BufferStore) -> set[str]:
    return {p.name for p in Path(store.path(Buffer(RECORD))).parent.iterdir()} - META


META = {"lock", "owner.json"}
RECORD: Any = type("Named", (), {"id": "x"})


def key(buffer: Buffer) -> tuple[str, bytes]:
    return buffer.record.id, bytes.fromhex(buffer.record.token)


async def test_space_is_allocated_and_private(store: BufferStore) -> None:
    buffer = await store.create("a", 3 * PAGE + 1)
    info = os.stat(store.path(buffer))
    assert info.st_size == 3 * PAGE + 1
    assert info.st_blocks * 512 >= 3 * PAGE + 1  # really there: no SIGBUS later
    assert stat.S_IMODE(info.st_mode) == 0o600
    assert stat.S_IMODE(os.stat(Path(store.path(buffer)).parent).st_mode) == 0o700


async def test_budget_counts_whole_pages_and_gives_back(make_store: Make) -> None:
    store = make_store(budget=2 * charge(1))
    first = await store.create("a", 1)
    await store.create("a", 1)
    with pytest.raises(ResourceExhausted, match="budget") as caught:
        await store.create("a", 1)
    assert caught.value.reason == "NO_ROOM"
    store.free("a", *key(first))
    await store.create("a", 1)


@pytest.mark.parametrize("size", [0, -1, (1 << 20) + 1, 1 << 63])
async def test_bad_sizes(store: BufferStore, size: int) -> None:
    with pytest.raises(InvalidArgument, match="1 to 1,048,576") as caught:
        await store.create("a", size)
    assert caught.value.reason == "BAD_SIZE"


async def test_max_size_below_the_budget(make_store: Make) -> None:
    store = make_store(max_size=PAGE)
    with pytest.raises(InvalidArgument, match="max_buffer_bytes"):
        await store.create("a", PAGE + 1)


async def test_a_full_file_system_leaves_nothing(tmp_path: Path) -> None:
    root = shm.locate("", tmp_path, tmp_path)
    directory = Directory(root, tmp_path)
    try:
        with pytest.raises(ResourceExhausted, match="no room") as caught:
            directory.allocate("ab", directory.total() + (1 << 30))
        assert caught.value.reason == "NO_ROOM"
        store = BufferStore(directory, budget=directory.total() * 4)
        with pytest.raises(ResourceExhausted):
            await store.create("a", directory.total() * 2)
        assert {p.name for p in root.iterdir()} == META
        await store.create("a", 1)  # the failed ones cost nothing
        store.drop_process("a")
    finally:
        directory.close()
    assert not root.exists()


async def test_large_buffers_are_created_beside_other_work(make_store: Make) -> None:
    store = make_store(budget=1 << 30)
    size = 64 << 20
    both = [asyncio.create_task(store.create("a", size, request="r")) for _ in range(2)]
    third = asyncio.create_task(store.create("b", size, request="r"))
    await asyncio.sleep(0)
    with pytest.raises(InvalidArgument, match="request_id"):
        await store.create("a", size - 1, request="r")
    first, second = await asyncio.gather(*both)
    assert first is second
    assert (await third) is not first
    assert store.accounts.used == 2 * charge(size)


async def test_a_cancelled_creation_is_found_by_its_retry(make_store: Make) -> None:
    store = make_store(budget=1 << 30)
    task = asyncio.create_task(store.create("a", 64 << 20, request="r"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    buffer = await store.create("a", 64 << 20, request="r")
    assert store.buffers() == [buffer]


async def test_leases_run_out_one_by_one(store: BufferStore, clock: Any) -> None:
    buffer = await store.create("a", 10, lease_s=5)
    store.open("b", *key(buffer), lease_s=8)
    clock.now += 4
    assert store.renew("a", []) == []
    clock.now += 4.5
    assert store.expire() == 1  # b's
    assert list(buffer.deadlines) == ["a"]
    clock.now += 1
    assert store.expire() == 1
    assert store.buffers() == [] and names(store) == set()
    assert store.renew("a", [buffer.record.id]) == [buffer.record.id]


async def test_lease_times_are_bounded(store: BufferStore, clock: Any) -> None:
    default = await store.create("a", 10)
    longest = await store.create("a", 10, lease_s=1 << 31)
    clock.now += 30
    store.expire()
    assert store.buffers() == [longest]
    clock.now += 3570
    store.expire()
    assert store.buffers() == [] and default.deadlines == {}


async def test_a_restart_finds_everything(make_store: Make, clock: Any) -> None:
    store = make_store()
    old = await store.create("a/1", 100, label="x" * 1000, lease_s=5, request="r")
    Path(store.path(old)).write_bytes(b"y" * 100)
    clock.now += 0.1
    sealed = await store.create("a/1", 10)
    store.seal("a/2", *key(sealed))
    store.open("b", *key(old), lease_s=7)
    clock.now += 4.9
    store = make_store()
    assert [b.record.id for b in store.buffers()] == [old.record.id, sealed.record.id]
    again = store.buffers()[0]
    assert again.record == old.record and len(again.record.label) == 256
    assert again.deadlines == {"a/1": clock.now + 5, "b": clock.now + 7}  # full time again
    assert b"".join(store.read(*key(old))) == b"y" * 100
    assert store.buffers()[1].record.sealed
    assert (await store.create("a/1", 100, request="r")) is again
    assert (await store.create("b", 100, request="r")) is not again
    with pytest.raises(InvalidArgument, match="request_id"):
        await store.create("a/1", 99, request="r")


async def test_a_restart_removes_what_is_half_there(make_store: Make) -> None:
    store = make_store()
    good = await store.create("a", 100)
    cut = await store.create("a", 100)
    lost = await store.create("a", 100)
    folder = Path(store.path(good)).parent
    (folder / "ab12").write_bytes(b"no record")
    (folder / "cd34.json").write_text("{not json")
    (folder / "ef56.json").write_text(json.dumps({"id": "ef56"}))
    (folder / "ab12.tmp").write_text("")
    os.truncate(store.path(cut), 50)
    os.unlink(store.path(lost))
    store = make_store()
    assert [b.record.id for b in store.buffers()] == [good.record.id]
    assert names(store) == {good.record.id, f"{good.record.id}.json"}


async def test_another_boot_starts_empty(make_store: Make, tmp_path: Path) -> None:
    store = make_store()
    await store.create("a", 100)
    (tmp_path / "shm/owner.json").write_text(json.dumps({"state_dir": "/x", "host": "h/boot/ns"}))
    assert make_store().buffers() == []


async def test_a_cut_buffer_is_data_loss(store: BufferStore) -> None:
    buffer = await store.create("a", 100)
    os.truncate(store.path(buffer), 50)
    with pytest.raises(DataLoss, match="cut"):
        list(store.read(*key(buffer)))


async def test_opening_and_freeing_need_no_room(
    make_store: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store()
    buffer = await store.create("a", 100)

    def full(self: Directory, record: object, *, first: bool = False) -> None:
        raise ResourceExhausted("NO_ROOM", "no room")

    with monkeypatch.context() as patch:
        patch.setattr(Directory, "save", full)
        store.open("b", *key(buffer))
        store.free("a", *key(buffer))
        with pytest.raises(ResourceExhausted):
            await store.create("a", 100)
    assert "record not saved" in caplog.text
    assert list(buffer.deadlines) == ["b"] and store.accounts.used == charge(100)
    assert [b.record.id for b in make_store().buffers()] == [buffer.record.id]


def test_two_servers_on_one_directory(tmp_path: Path) -> None:
    first = Directory(tmp_path / "d", tmp_path)
    with pytest.raises(FailedPrecondition, match="Another memory server") as caught:
        Directory(tmp_path / "d", tmp_path)
    assert caught.value.reason == "ALREADY_RUNNING"
    first.close()
    assert not (tmp_path / "d").exists()
    Directory(tmp_path / "d", tmp_path).close()


def test_a_directory_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "d").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FailedPrecondition, match="belongs to somebody else"):
        Directory(tmp_path / "d", tmp_path)
    with pytest.raises(FailedPrecondition, match="--shm-dir"):
        Directory(tmp_path / "no/such/parent", tmp_path)


def test_left_behind_directories_are_swept(tmp_path: Path) -> None:
    def leave(state: Path, lock: bool) -> Directory:
        directory = Directory(shm.locate("", state, tmp_path), state)
        directory.allocate("ab", 100)
        if not lock:
            os.close(directory._lock)
        return directory

    (tmp_path / "alive").mkdir()
    gone = leave(tmp_path / "gone", lock=False)
    used = leave(tmp_path / "gone but served", lock=True)
    kept = leave(tmp_path / "alive", lock=False)
    ours = Directory(shm.locate("", tmp_path, tmp_path), tmp_path)
    try:
        assert not gone.path.exists()
        assert used.path.exists() and kept.path.exists()
    finally:
        for directory in (used, kept):
            (directory.path / "ab").unlink()
        os.close(used._lock)
        Directory(kept.path, tmp_path).close()
        Directory(used.path, tmp_path).close()
        ours.close()


async def test_a_tenant_has_its_share(make_store: Make) -> None:
    store = make_store(budget=100 * PAGE, quota=2 * charge(PAGE))
    first = await store.create("a", PAGE, request="1", tenant="red")
    await store.create("b", PAGE, tenant="red")
    with pytest.raises(ResourceExhausted, match="tenant 'red' use") as caught:
        await store.create("a", PAGE, tenant="red")
    assert caught.value.reason == "QUOTA"
    await store.create("a", PAGE, tenant="blue")
    assert (await store.create("a", PAGE, request="1", tenant="red")).record.id == first.record.id
    store = make_store(budget=100 * PAGE, quota=2 * charge(PAGE))  # the next server knows, too
    with pytest.raises(ResourceExhausted, match="tenant 'red' use"):
        await store.create("a", PAGE, tenant="red")
    store.free("a", *key(first))
    await store.create("a", PAGE, tenant="red")
