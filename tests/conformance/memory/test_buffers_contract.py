from __future__ import annotations

import mmap
import os
from typing import Any

import pytest

from llmos.lib.errors import InvalidArgument, LLMOSError, NotFound, OutOfRange, PermissionDenied
from llmos.lib.errors import ResourceExhausted as Exhausted

MIB = 1 << 20


def mapped(path: str, *, write: bool = False) -> mmap.mmap:
    with open(path, "r+b" if write else "rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | (mmap.PROT_WRITE if write else 0))


def no_such(caught: Any) -> bool:
    error: LLMOSError = caught.value
    return error.reason == "NO_SUCH_BUFFER"


async def test_create_map_share_and_free(world: Any) -> None:
    maker, user = world.buffers("maker"), world.buffers("user")
    key = await maker.create(MIB, label="pixels")
    with mapped(key.path, write=True) as mine:
        assert len(mine) == MIB and not mine[:].strip(b"\0")  # zeroed
        path, sealed = await user.open(key)
        assert (path, sealed) == (key.path, False)
        with mapped(path) as theirs:
            mine[:5] = b"hello"
            assert theirs[:5] == b"hello"
            await maker.free(key)
            (info,) = await maker.list()
            assert (info.id, info.size, info.leases, info.label) == (key.id, MIB, 1, "pixels")
            await user.free(key)
            assert await maker.list() == [] and not os.path.exists(path)
            mine[5:10] = b" you!"
            assert theirs[:10] == b"hello you!"  # mappings outlive the buffer


async def test_tokens_are_needed(world: Any) -> None:
    maker, thief = world.buffers("maker"), world.buffers("thief")
    key = await maker.create(10)
    for token in (b"", key.token[:-1], key.token[::-1]):
        wrong = type(key)(key.id, token, key.path)
        for attempt in (thief.open, maker.seal, thief.read):
            with pytest.raises(NotFound) as caught:
                await attempt(wrong)
            assert no_such(caught)
        await maker.free(wrong)  # freeing what is not there is fine, and frees nothing
    (info,) = await maker.list()
    assert info.leases == 1 and not info.sealed


async def test_freeing_twice_is_fine_and_ids_are_new(world: Any) -> None:
    client = world.buffers()
    first = await client.create(10)
    await client.free(first)
    await client.free(first)
    second = await client.create(10)
    assert first.id != second.id and first.token != second.token
    with pytest.raises(NotFound) as caught:
        await client.open(first)
    assert no_such(caught)


async def test_one_client_frees_only_its_own_lease(world: Any) -> None:
    maker, other = world.buffers("maker"), world.buffers("other")
    key = await maker.create(10)
    await other.free(key)
    assert len(await maker.list()) == 1


async def test_sealing(world: Any) -> None:
    maker, user = world.buffers("maker"), world.buffers("user")
    key = await maker.create(10)
    with pytest.raises(PermissionDenied) as caught:
        await user.seal(key)
    assert caught.value.reason == "NOT_OWNER"
    await maker.seal(key)
    await maker.seal(key)
    assert os.stat(key.path).st_mode & 0o777 == 0o400
    assert await user.open(key) == (key.path, True)
    assert (await user.list())[0].sealed


async def test_reading_by_stream(world: Any) -> None:
    client = world.buffers()
    key = await client.create(MIB + 7)
    data = os.urandom(MIB + 7)
    with mapped(key.path, write=True) as mine:
        mine[:] = data
    pieces = await client.read(key)
    assert b"".join(pieces) == data and max(map(len, pieces)) == 256 << 10
    assert b"".join(await client.read(key, 3, MIB)) == data[3 : MIB + 3]
    assert b"".join(await client.read(key, MIB)) == data[MIB:]
    assert await client.read(key, MIB + 7) == []
    for offset, length in ((MIB + 8, 0), (MIB, 8), (1 << 63, 1)):
        with pytest.raises(OutOfRange) as caught:
            await client.read(key, offset, length)
        assert caught.value.reason == "BAD_RANGE"


async def test_creating_again_with_the_same_request_id(world: Any) -> None:
    client, other = world.buffers("client"), world.buffers("other")
    key = await client.create(10, request="r1")
    assert await client.create(10, request="r1") == key
    assert await client.create(10, request="r2") != key
    assert await other.create(10, request="r1") != key
    with pytest.raises(InvalidArgument) as caught:
        await client.create(11, request="r1")
    assert caught.value.reason == "BAD_SIZE"
    assert len(await client.list()) == 3


async def test_renewing_names_what_is_gone(world: Any) -> None:
    client, other = world.buffers("client"), world.buffers("other")
    mine, theirs = await client.create(10), await other.create(10)
    assert await client.renew(mine.id) == []
    assert await client.renew() == []
    assert await client.renew(theirs.id, mine.id, "x") == [theirs.id, "x"]


async def test_limits(world: Any) -> None:
    client = world.buffers()
    for size in (0, 4 * MIB + 1, (1 << 64) - 1):
        with pytest.raises(InvalidArgument, match="4,194,304") as bad:
            await client.create(size)
        assert bad.value.reason == "BAD_SIZE"
    await client.create(4 * MIB)
    with pytest.raises(Exhausted, match="budget of 8,388,608") as full:
        await client.create(4 * MIB)
    assert full.value.reason == "NO_ROOM"


async def test_listing_is_oldest_first_and_names_owners(world: Any) -> None:
    keys = [await world.buffers(who).create(10) for who in "abc"]
    infos = await world.buffers().list()
    assert [i.id for i in infos] == [k.id for k in keys]
    assert len({i.owner for i in infos}) == 3
