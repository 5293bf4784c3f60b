"""llmos.lib.buffers against a served memory core, over gRPC."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos.api.memory.v1.buffers_pb2 import BufferHandle
from llmos.lib.buffers import BufferClient, Mapping
from llmos.lib.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Unavailable,
)

MIB = 1 << 20


async def test_arrays_share_memory_between_clients(near_and_far: Any) -> None:
    world, near, _ = near_and_far
    async with BufferClient(near) as maker, BufferClient(near) as user:
        mine = await maker.create(MIB, label="weights")
        numbers = mine.array(np.float32, (256, 1024))
        numbers[:] = np.arange(numbers.size).reshape(numbers.shape)
        handle = BufferHandle.FromString(mine.handle.SerializeToString())
        theirs = await user.open(handle)
        assert not theirs.private and not theirs.writable
        again = theirs.array("float32", (256, 1024))
        np.testing.assert_array_equal(again, numbers)
        numbers[3, 3] = -1
        assert again[3, 3] == -1  # one memory
        with pytest.raises(ValueError, match="read-only"):
            again[0, 0] = 1
        with pytest.raises(TypeError):
            theirs.view[0] = 1
        both = await user.open(handle, write=True)
        both.array(np.uint8, offset=MIB - 1)[:] = 77
        assert mine.view[MIB - 1] == 77
        await user.free(both)
        await user.settled()
        assert len(world.store.buffers()[0].deadlines) == 2  # `theirs` still counts
        await user.free(theirs)
        await user.free(theirs)
        await user.settled()
        assert len(world.store.buffers()[0].deadlines) == 1
    assert world.store.buffers() == []


async def test_arrays_that_do_not_fit(near_and_far: Any) -> None:
    _, near, _ = near_and_far
    async with BufferClient(near) as client:
        mapping = await client.create(100)
        assert mapping.array(np.float64).shape == (12,)
        assert mapping.array(np.uint8, (), 99).shape == ()
        for shape, offset in (((26,), 0), ((25,), 1), ((1 << 40, 1 << 40), 0), ((-1,), 0)):
            with pytest.raises(OutOfRange):
                mapping.array(np.float32, shape, offset)


async def test_arrays_outlive_their_mapping(near_and_far: Any) -> None:
    _, near, _ = near_and_far
    async with BufferClient(near) as client:
        mapping = await client.create(MIB)
        array = mapping.array(np.uint8)
        array[:] = 7
        view = mapping.view
    with pytest.raises(ValueError, match="closed"):
        mapping.array(np.uint8)
    gc.collect()
    assert int(array.sum()) == 7 * MIB and view[-1] == 7
    path = mapping.handle.id
    assert path in Path("/proc/self/maps").read_text()
    del array, view
    assert path not in Path("/proc/self/maps").read_text()  # no leak either


async def test_from_another_host_the_bytes_are_streamed(near_and_far: Any) -> None:
    world, near, far = near_and_far
    data = os.urandom(3 * MIB + 5)
    async with BufferClient(near) as maker, BufferClient(far) as user:
        mine = await maker.create(len(data))
        mine.view[:] = data
        theirs = await user.open(mine.handle)
        assert theirs.private and theirs.view == data
        with pytest.raises(TypeError):
            theirs.view[0] = 1
        assert len(world.store.buffers()[0].deadlines) == 1  # a copy needs no lease
        with pytest.raises(FailedPrecondition) as caught:
            await user.open(mine.handle, write=True)
        assert caught.value.reason == "OTHER_HOST"
        with pytest.raises(FailedPrecondition) as caught:
            await user.create(10)
        assert caught.value.reason == "OTHER_HOST"
        assert len(world.store.buffers()) == 1


async def test_sealing_closes_views(near_and_far: Any) -> None:
    _, near, _ = near_and_far
    async with BufferClient(near) as maker, BufferClient(near) as user:
        mine = await maker.create(10)
        theirs = await user.open(mine.handle)
        with pytest.raises(PermissionDenied):
            await user.seal(theirs)
        await maker.seal(mine)
        with pytest.raises(TypeError):
            mine.view[0] = 1
        with pytest.raises(FailedPrecondition) as caught:
            await user.open(mine.handle, write=True)
        assert caught.value.reason == "SEALED"


async def test_a_handle_to_read_by(near_and_far: Any) -> None:
    _, near, far = near_and_far
    async with BufferClient(near) as maker, BufferClient(near) as user, BufferClient(far) as afar:
        mine = await maker.create(10)
        mine.view[:] = b"0123456789"
        reader = await maker.reader(mine.handle)
        assert reader.id == mine.handle.id and reader.token != mine.handle.token
        assert (await user.reader(reader)).token == reader.token  # not more by asking again
        theirs = await user.open(reader)
        assert theirs.view == mine.view == (await afar.open(reader)).view
        mine.view[0] = 0x41
        assert theirs.view[0] == 0x41  # one memory
        for attempt in (
            user.open(reader, write=True),
            maker.seal(Mapping(reader, bytearray(10), writable=True)),
        ):
            with pytest.raises(PermissionDenied) as caught:
                await attempt
            assert caught.value.reason == "READ_ONLY"
        await maker.free(mine)
        assert bytes((await afar.open(reader)).view[1:]) == b"123456789"  # a lease is a lease
        with pytest.raises(NotFound):
            await user.reader(BufferHandle(id=reader.id, token=b"x", size=10))


async def test_errors_are_ours(near_and_far: Any) -> None:
    world, near, _ = near_and_far
    async with BufferClient(near) as client:
        with pytest.raises(InvalidArgument, match="67,108,864"):
            await client.create(65 * MIB)
        with pytest.raises(NotFound):
            await client.open(BufferHandle(id="nope", token=b"x", size=10))
        mapping = await client.create(100)
        lying = BufferHandle.FromString(mapping.handle.SerializeToString())
        lying.size = 1 << 50
        with pytest.raises(DataLoss):
            await client.open(lying)
        assert len(world.store.buffers()[0].deadlines) == 1  # the failed open dropped no lease


async def test_leases_are_renewed_and_taken_again(near_and_far: Any) -> None:
    world, near, _ = near_and_far
    async with BufferClient(near, lease_s=1) as client, BufferClient(near) as other:
        mine = await client.create(10)
        kept = await client.create(10)
        await other.open(kept.handle)
        until = asyncio.get_running_loop().time() + 1.5
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.1)
            assert world.store.expire() == 0
        (lessee,) = mine_lessees = set(world.store.buffers()[0].deadlines)
        assert world.store.drop_process(lessee) == 2  # as if this process had been stopped
        await asyncio.sleep(0.6)
        assert mine.lost and not kept.lost
        assert mine_lessees <= set(world.store.buffers()[0].deadlines)


async def test_patience_ends(tmp_path: Any) -> None:
    import grpc

    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/nobody.sock") as channel:
        with pytest.raises(Unavailable):
            await BufferClient(channel, patience_s=0.2).create(10)


async def test_torch_tensors_share_the_memory(near_and_far: Any) -> None:
    torch = pytest.importorskip("torch")
    _, near, far = near_and_far
    async with BufferClient(near) as maker, BufferClient(near) as user, BufferClient(far) as afar:
        mine = await maker.create(MIB)
        numbers = mine.tensor(np.float32, (4, 1024), offset=4096)
        numbers[:] = torch.arange(4096).view(4, 1024)
        theirs = (await user.open(mine.handle)).tensor("float32", (4, 1024), offset=4096)
        assert torch.equal(theirs, numbers)
        numbers[1, 1] = -1
        assert theirs[1, 1] == -1 and theirs.data_ptr() != numbers.data_ptr()
        half = mine.tensor("bfloat16", (2048,), offset=4096)
        assert half.dtype is torch.bfloat16 and half.data_ptr() == numbers.data_ptr()
        copied = await afar.open(mine.handle)  # from another host the same handle is streamed
        assert copied.private
        assert torch.equal(copied.tensor(np.float32, (4, 1024), offset=4096), numbers)
        await maker.free(mine)
        gc.collect()
        assert numbers[1, 1] == -1  # the tensor keeps the memory
        with pytest.raises(ValueError, match="closed"):
            mine.tensor("float32")
