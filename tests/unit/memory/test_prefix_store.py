"""The prefix store in process: what is found, what goes first, and what outlives the server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.lib.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from llmos.servers.memory.buffers import BufferStore
from llmos.servers.memory.prefix.run import Space
from llmos.servers.memory.prefix.store import LESSEE, PrefixStore

BLOCK = 4096
SPACE = Space("model", "layout", "local")
WORKER = "grpc:worker"


def keys(text: str, count: int) -> list[bytes]:
    """Return the keys of the first blocks of a text."""
    return [hashlib.blake2b(f"{text}{i}".encode(), digest_size=16).digest() for i in range(count)]


def data(key: bytes) -> bytes:
    return key * (BLOCK // len(key))


class Box:
    """A buffer store with a prefix store over it, both as of one memory server."""

    def __init__(self, make: Callable[..., BufferStore], path: Path, **budgets: Any) -> None:
        self.buffers = make(budget=1 << 20)
        budgets.setdefault("ram_budget", 8 * BLOCK)
        self.prefixes = PrefixStore(self.buffers, path / "memory", **budgets)

    async def put(self, wanted: list[bytes], space: Space = SPACE, **about: Any) -> int:
        """Put blocks as a worker does, and free the buffer."""
        buffer = await self.buffers.create(WORKER, len(wanted) * BLOCK)
        id, token = buffer.record.id, bytes.fromhex(buffer.record.token)
        Path(self.buffers.path(buffer)).write_bytes(b"".join(map(data, wanted)))
        self.buffers.seal(WORKER, id, token)
        try:
            return await self.prefixes.put(space, wanted, (id, token), BLOCK, **about)
        finally:
            self.buffers.free(WORKER, id, token)

    async def find(self, wanted: list[bytes], held: int = 0, space: Space = SPACE) -> int:
        """Return how many blocks are found; checks their bytes."""
        at = held
        for part in await self.prefixes.find(space, wanted, held):
            buffer = self.buffers.open(WORKER, part.run.buffer, part.run.token)
            content = Path(self.buffers.path(buffer)).read_bytes()
            for i in range(part.first, part.first + part.blocks):
                assert content[i * BLOCK : (i + 1) * BLOCK] == data(wanted[at])
                at += 1
            self.buffers.free(WORKER, part.run.buffer, part.run.token)
        return at - held


@pytest.fixture
def box(make_store: Callable[..., BufferStore], tmp_path: Path) -> Callable[..., Box]:
    return lambda **budgets: Box(make_store, tmp_path, **budgets)


async def test_what_was_put_is_found_up_to_a_gap(box: Callable[..., Box]) -> None:
    b, chain = box(), keys("a", 6)
    assert await b.find(chain) == 0
    assert await b.put(chain[:3]) == 3
    assert await b.put(chain[4:], depth=4) == 2
    assert await b.find(chain) == 3
    assert await b.find(chain, held=2) == 1
    assert await b.find(chain[:3], held=3) == 0
    assert await b.put(chain[3:4], depth=3) == 1
    assert await b.find(chain) == 6
    shelf = b.prefixes.shelves()[0]
    assert (shelf.hits, shelf.misses) == (10, 6)


async def test_others_find_nothing(box: Callable[..., Box]) -> None:
    b, chain = box(), keys("a", 2)
    await b.put(chain)
    for other in ("tenant", "model", "layout"):
        assert await b.find(chain, space=SPACE._replace(**{other: "other"})) == 0


async def test_the_same_blocks_are_kept_once(box: Callable[..., Box]) -> None:
    b, chain = box(), keys("a", 3)
    assert await b.put(chain[:2]) == 2
    assert await b.put(chain[:2]) == 0
    assert b.prefixes.ram_bytes == 2 * BLOCK
    assert len(b.buffers.buffers()) == 1
    assert await b.put(chain) == 1
    assert await b.find(chain) == 3


async def test_a_retry_takes_the_buffer_once(box: Callable[..., Box]) -> None:
    b, chain = box(), keys("a", 1)
    buffer = await b.buffers.create(WORKER, BLOCK)
    handle = buffer.record.id, bytes.fromhex(buffer.record.token)
    b.buffers.seal(WORKER, *handle)
    for stored in (1, 0):
        assert await b.prefixes.put(SPACE, chain, handle, BLOCK) == stored
    b.buffers.free(WORKER, *handle)
    assert [part.blocks for part in await b.prefixes.find(SPACE, chain)] == [1]
    assert len(b.buffers.buffers()) == 1


async def test_the_longest_unused_goes_first_and_of_a_text_its_end(
    box: Callable[..., Box],
) -> None:
    b, old, new = box(ram_budget=6 * BLOCK), keys("old", 4), keys("new", 2)
    for i in (0, 2):
        await b.put(old[i : i + 2], depth=i)
    await b.put(new)
    assert await b.find(old) == 4
    await b.put(keys("third", 2))  # `new` was used before `old`
    assert (await b.find(new), await b.find(old)) == (0, 4)
    await b.find(keys("third", 2))
    await b.put(keys("fourth", 2))
    assert await b.find(old) == 2
    assert b.prefixes.evictions == 2


async def test_what_is_cheap_to_compute_goes_before_what_is_dear(box: Callable[..., Box]) -> None:
    b, large, small = box(ram_budget=4 * BLOCK), keys("l", 2), keys("s", 2)
    other = SPACE._replace(model="small")
    await b.put(large, cost_s=10.0)
    await b.put(small, space=other, cost_s=0.1)
    await b.put(keys("s2", 2), space=other, cost_s=0.1)
    assert await b.find(large) == 2
    assert await b.find(small, space=other) == 0


async def test_a_short_disk_is_left_to_others(box: Callable[..., Box]) -> None:
    b = box(ram_budget=4 * BLOCK, disk_budget=1 << 20, disk_spare=1 << 60)
    for name in ("old", "new"):
        assert await b.put(keys(name, 4)) == 4
    assert b.prefixes.disk_bytes == 0
    assert (await b.find(keys("old", 4)), await b.find(keys("new", 4))) == (0, 4)


async def test_disk_keeps_what_memory_has_no_room_for(box: Callable[..., Box]) -> None:
    b, chain = box(ram_budget=4 * BLOCK, disk_budget=64 * BLOCK), keys("a", 4)
    for i in (0, 2):
        await b.put(chain[i : i + 2], depth=i)
    await b.put(keys("b", 4))
    assert b.prefixes.ram_bytes == 4 * BLOCK
    assert b.prefixes.disk_bytes == 4 * BLOCK
    assert await b.find(chain) == 4  # paged in, and `b` is on disk now
    assert await b.find(keys("b", 4)) == 4
    assert b.prefixes.ram_bytes <= 4 * BLOCK


async def test_a_text_longer_than_memory_is_found_as_far_as_it_fits(
    box: Callable[..., Box],
) -> None:
    b, chain = box(ram_budget=4 * BLOCK, disk_budget=64 * BLOCK), keys("a", 8)
    for i in range(8):
        await b.put(chain[i : i + 1], depth=i)
    assert await b.find(chain) == 4


async def test_the_disk_has_its_budget(box: Callable[..., Box]) -> None:
    b = box(ram_budget=2 * BLOCK, disk_budget=4 * BLOCK)
    for i in range(10):
        await b.put(keys(f"t{i}", 2))
    assert b.prefixes.disk_bytes == 4 * BLOCK
    assert [await b.find(keys(f"t{i}", 2)) for i in range(6)] == [0] * 6
    assert await b.find(keys("t9", 2)) == 2


async def test_damaged_files_are_told_by_their_checksum(
    box: Callable[..., Box], tmp_path: Path
) -> None:
    b, chain = box(ram_budget=2 * BLOCK, disk_budget=64 * BLOCK), keys("a", 2)
    await b.put(chain)
    await b.put(keys("b", 2))
    (file,) = (tmp_path / "memory" / "prefixes").iterdir()
    file.write_bytes(b"x" + file.read_bytes()[1:])
    assert await b.find(chain) == 0
    assert not file.exists()
    assert await b.put(chain) == 2
    assert await b.find(chain) == 2


async def test_everything_is_found_again_after_a_restart(
    box: Callable[..., Box], tmp_path: Path
) -> None:
    b, chain = box(ram_budget=4 * BLOCK, disk_budget=64 * BLOCK), keys("a", 6)
    for i in (0, 2, 4):
        await b.put(chain[i : i + 2], depth=i)
    stray = tmp_path / "memory" / "prefixes" / "77.tmp"
    stray.write_bytes(b"half")
    again = box(ram_budget=6 * BLOCK, disk_budget=64 * BLOCK)  # as after kill -9: nothing is closed
    assert not stray.exists()
    assert again.prefixes.ram_bytes == 4 * BLOCK
    assert again.prefixes.disk_bytes == 2 * BLOCK
    assert await again.find(chain) == 6
    off = box(ram_budget=0)
    assert await off.find(chain) == 0
    assert off.buffers.buffers() == []
    assert list((tmp_path / "memory" / "prefixes").iterdir()) == []


async def test_a_server_that_stops_leaves_no_memory_behind(box: Callable[..., Box]) -> None:
    b, chain = box(disk_budget=4 * BLOCK), keys("a", 4)
    await b.put(keys("old", 2))
    for i in (0, 2):
        await b.put(chain[i : i + 2], depth=i)
    await b.prefixes.close()
    assert b.buffers.buffers() == []
    again = box(disk_budget=4 * BLOCK)
    assert (again.prefixes.ram_bytes, again.prefixes.disk_bytes) == (0, 4 * BLOCK)
    assert await again.find(chain) == 4
    assert await again.find(keys("old", 2)) == 0


async def test_a_catalogue_that_is_damaged_is_begun_anew(
    box: Callable[..., Box], tmp_path: Path
) -> None:
    b = box()
    await b.put(keys("a", 2))
    await b.prefixes.close()
    (tmp_path / "memory" / "prefixes.db").write_bytes(b"not a database, and long enough for it" * 9)
    again = box()
    assert await again.find(keys("a", 2)) == 0
    assert again.buffers.lessees() == []


async def test_drop_removes_all_there_is(box: Callable[..., Box], tmp_path: Path) -> None:
    b, mine = box(ram_budget=2 * BLOCK, disk_budget=64 * BLOCK), SPACE._replace(tenant="me")
    await b.put(keys("a", 2), space=mine)
    await b.put(keys("b", 2), space=mine)
    await b.put(keys("c", 1))
    assert await b.prefixes.drop(tenant="me") == (4, 4 * BLOCK)
    assert [shelf.space for shelf in b.prefixes.shelves()] == [SPACE]
    assert list((tmp_path / "memory" / "prefixes").iterdir()) == []
    assert await b.prefixes.drop("no such model") == (0, 0)
    assert await b.prefixes.drop() == (1, BLOCK)
    assert b.buffers.lessees() == []


async def test_others_get_the_memory_when_they_need_it(box: Callable[..., Box]) -> None:
    b = box()
    for i in range(4):
        await b.put(keys(f"t{i}", 2))
    b.prefixes.shrink(3 * BLOCK)
    assert b.prefixes.ram_bytes == 4 * BLOCK
    assert await b.find(keys("t3", 2)) == 2
    await b.buffers.create("grpc:other", b.buffers.accounts.budget - 5 * BLOCK)
    assert b.prefixes.ram_bytes == 2 * BLOCK
    assert await b.find(keys("t3", 2)) == 2
    with pytest.raises(ResourceExhausted):
        await b.buffers.create("grpc:other", b.buffers.accounts.budget - 5 * BLOCK)


async def test_leases_are_kept(box: Callable[..., Box], clock: Any) -> None:
    b, chain = box(), keys("a", 2)
    await b.put(chain)
    for _ in range(3):
        clock.now += 3000
        await b.prefixes.tick()
        b.buffers.expire()
    assert await b.find(chain) == 2


async def test_bad_input_is_refused_and_leaves_nothing(box: Callable[..., Box]) -> None:
    b, chain = box(), keys("a", 2)
    buffer = await b.buffers.create(WORKER, 2 * BLOCK)
    handle = buffer.record.id, bytes.fromhex(buffer.record.token)

    async def refused(error: type[Exception], reason: str, *arguments: Any) -> None:
        with pytest.raises(error) as caught:
            await b.prefixes.put(*arguments)
        assert caught.value.reason == reason  # type: ignore[attr-defined]
        assert LESSEE not in b.buffers.lessees()

    await refused(FailedPrecondition, "NOT_SEALED", SPACE, chain, handle, BLOCK)
    b.buffers.seal(WORKER, *handle)
    for block_bytes in (0, BLOCK + 1, BLOCK // 4):
        await refused(InvalidArgument, "BAD_BLOCKS", SPACE, chain, handle, block_bytes)
    await refused(NotFound, "NO_SUCH_BUFFER", SPACE, chain, (handle[0], b"x" * 16), BLOCK)
    for bad in ([], [b"short"], [*chain, b"x" * 17], [b"x" * 65], chain * 2, [b"x" * 16] * 8193):
        await refused(InvalidArgument, "BAD_KEYS", SPACE, bad, handle, BLOCK)
    for space in (Space("", "l", "t"), Space("m", "", "t"), Space("m" * 513, "l", "t")):
        await refused(InvalidArgument, "BAD_SPACE", space, chain, handle, BLOCK)
    small = box(ram_budget=BLOCK)
    with pytest.raises(ResourceExhausted, match="prefix_ram_fraction"):
        await small.put(chain)
    assert LESSEE not in small.buffers.lessees()
    with pytest.raises(InvalidArgument, match="held"):
        await b.prefixes.find(SPACE, chain, 3)
