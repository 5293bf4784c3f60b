"""Files of buffers that are made ahead."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos.lib.errors import ResourceExhausted
from llmos.servers.memory.buffers import BufferStore
from llmos.servers.memory.shm import Directory
from llmos.servers.memory.spares import KEEP_S, SIZES, Spares

MIB = 1 << 20
META = {"lock", "owner.json"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def names(path: Path) -> set[str]:
    return {p.name for p in path.iterdir()} - META


def settle(spares: Spares) -> None:
    spares._thread.submit(lambda: None).result()


async def test_what_is_asked_for_again_is_there_and_never_was_anybodys(tmp_path: Path) -> None:
    clock = Clock()
    store = BufferStore(Directory(tmp_path / "shm", tmp_path), budget=64 * MIB, clock=clock)
    seen: set[str] = set()
    for round in range(6):
        buffer = await store.create("a", 2 * MIB)
        record = buffer.record
        assert record.id not in seen
        seen.add(record.id)
        file = Path(store.path(buffer))
        assert file.stat().st_size == 2 * MIB and file.stat().st_mode & 0o777 == 0o600
        assert file.stat().st_blocks * 512 >= 2 * MIB  # the space is really there
        assert not file.read_bytes().strip(b"\0")
        file.write_bytes(b"x" * 2 * MIB)
        settle(store._spares)
        assert len(names(tmp_path / "shm") - {record.id, f"{record.id}.json"}) == (round > 0)
        store.free("a", record.id, bytes.fromhex(record.token))
        settle(store._spares)
        assert not file.exists()
    clock.now += KEEP_S
    store.expire()
    settle(store._spares)
    assert not names(tmp_path / "shm")
    store.close()
    assert not (tmp_path / "shm").exists()


async def test_spares_are_few_and_leave_nothing(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "shm", tmp_path)
    spares = Spares(directory)
    for i in range(3 * SIZES):
        for _ in range(2):
            assert not spares.take(MIB + i, float(i))
    assert not spares.take(10, 9.0) and not spares.take(1 << 40, 9.0)
    settle(spares)
    assert len(names(directory.path)) == SIZES
    spares.close()
    assert not names(directory.path)
    directory.close()


async def test_spares_give_way_when_room_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Directory(tmp_path / "shm", tmp_path)
    store = BufferStore(directory, budget=64 * MIB)
    for _ in range(2):
        await store.create("a", MIB)
    settle(store._spares)
    monkeypatch.setattr(
        directory,
        "room",
        lambda: 3 * MIB - MIB * sum(1 for n in names(directory.path) if "." not in n),
    )
    with pytest.raises(ResourceExhausted, match="shared memory has 1,048,576 free"):
        await store.create("a", 3 * MIB)
    assert len(names(directory.path)) == 4  # two buffers and their records
    store.close()
