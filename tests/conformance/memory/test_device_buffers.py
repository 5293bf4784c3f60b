"""llmos.lib.devicebuffers: over a stand-in for the CUDA driver, and over the driver (gpu)."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from memory_process import line_of

from llmos.api.memory.v1.buffers_pb2 import BufferHandle
from llmos.lib.buffers import BufferClient
from llmos.lib.config import socket_address
from llmos.lib.cuda import Cuda
from llmos.lib.devicebuffers import DeviceBuffers
from llmos.lib.errors import FailedPrecondition, InvalidArgument, ResourceExhausted

SUPPORT = Path(__file__).parents[2] / "support"
MIB = 1 << 20


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library with the driver's calls over shared memory."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("cuda") / "standin.so"
    source = str(SUPPORT / "standin_cuda.c")
    command = [compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", str(library), source, "-lrt"]
    subprocess.run(command, check=True, timeout=60)
    return str(library)


class Reader:
    """Another process that has opened a handle."""

    def __init__(self, address: str, library: str, handle: BufferHandle) -> None:
        script = str(SUPPORT / "device_reader.py")
        self.process = subprocess.Popen(
            [sys.executable, script, address, library, handle.SerializeToString().hex()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await line_of(self.process.stdout)).decode().strip()

    async def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        assert await asyncio.to_thread(self.process.wait, 30) == 0
        self.process.stdout.close()


def segments() -> list[Path]:
    return list(Path("/dev/shm").glob(f"standin-cuda-{os.getpid()}-*"))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def test_memory_stays_while_another_process_has_it(
    near_and_far: Any, standin: str, tmp_path: Path
) -> None:
    world, near, _ = near_and_far
    async with BufferClient(near) as buffers, DeviceBuffers(buffers, Cuda(standin)) as devices:
        mine = await devices.create(MIB, label="activations")
        assert ctypes.string_at(mine.address, 4) == bytes(4)
        ctypes.memmove(mine.address, b"hello", 5)
        (info,) = world.store.buffers()
        assert info.record.sealed and info.record.label == "activations"
        reader = Reader(socket_address(tmp_path / "near", "memory"), standin, mine.handle)
        assert await reader.line() == f"{MIB} hello"
        assert await reader.line() == "written"
        assert ctypes.string_at(mine.address, 5) == b"Hello"  # one memory
        again = await devices.open(mine.handle)  # in the process that made it
        assert again.address == mine.address
        await devices.free(again)
        await devices.free(mine)
        with pytest.raises(ValueError, match="closed"):
            _ = mine.address
        # Freed here, and the other process's lease keeps it.
        await until(lambda: len(world.store.buffers()[0].deadlines) == 1)
        assert len(segments()) == 1
        await reader.end()
        await devices.settled()
        assert segments() == [] and world.store.buffers() == []


async def test_a_view_keeps_memory_and_lease_after_free(near_and_far: Any, standin: str) -> None:
    world, near, _ = near_and_far
    async with BufferClient(near) as buffers, DeviceBuffers(buffers, Cuda(standin)) as devices:
        mine = await devices.create(4096)
        view = mine._held()  # as a tensor has it
        await devices.free(mine)
        await devices.free(mine)
        await asyncio.sleep(0)
        await devices.settled()
        assert len(segments()) == 1 and len(world.store.buffers()) == 1
        del view
        gc.collect()
        await asyncio.sleep(0)
        await devices.settled()
        assert segments() == []


async def test_what_goes_wrong_says_what_and_leaves_nothing(
    near_and_far: Any, standin: str, tmp_path: Path
) -> None:
    world, near, far = near_and_far
    with pytest.raises(FailedPrecondition) as error:
        Cuda("libcuda-of-nowhere.so")
    assert error.value.reason == "NO_GPU"
    async with (
        BufferClient(near) as buffers,
        BufferClient(near) as others,
        BufferClient(far) as distant,
        DeviceBuffers(buffers, Cuda(standin)) as devices,
        DeviceBuffers(others, Cuda(standin)) as elsewhere,
        DeviceBuffers(distant, Cuda(standin)) as abroad,
    ):
        with pytest.raises(InvalidArgument, match="0 bytes"):
            await devices.create(0)
        with pytest.raises(FailedPrecondition, match="cuda:5"):
            await devices.create(4096, device=5)
        with pytest.raises(ResourceExhausted, match="free or unload"):
            await devices.create(2 << 30)
        await buffers.settled()
        assert world.store.buffers() == [] and segments() == []
        plain = await buffers.create(4096)
        with pytest.raises(FailedPrecondition, match="in RAM"):
            await elsewhere.open(plain.handle)
        mine = await devices.create(4096)
        with pytest.raises(FailedPrecondition, match="another host"):
            await abroad.open(mine.handle)
        segments()[0].unlink()  # as if its process were gone
        with pytest.raises(FailedPrecondition) as error:
            await elsewhere.open(mine.handle)
        assert error.value.reason == "BAD_DEVICE_BUFFER"
        await others.settled()
        held = {b.record.id: len(b.deadlines) for b in world.store.buffers()}
        assert held == {plain.handle.id: 1, mine.handle.id: 1}


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="no NVIDIA GPU")
async def test_a_tensor_on_a_gpu_is_seen_by_another_process(
    near_and_far: Any, tmp_path: Path
) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    _, near, _ = near_and_far
    async with BufferClient(near) as buffers, DeviceBuffers(buffers) as devices:
        mine = await devices.create(4 * MIB)
        numbers = mine.tensor("float32", (1024, 1024))
        assert float(numbers.sum()) == 0 and numbers.data_ptr() == mine.address
        numbers.fill_(1)
        torch.cuda.synchronize()
        address = socket_address(tmp_path / "near", "memory")
        reader = Reader(address, "libcuda.so.1", mine.handle)
        assert await reader.line() == f"{4 * MIB} {float(MIB)}"
        assert await reader.line() == "written"
        assert float(numbers[0, 0]) == 7
        await reader.end()
        assert mine.tensor("bfloat16", (8,), 64).dtype == torch.bfloat16
