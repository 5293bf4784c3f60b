"""Another process with GPU memory: ADDRESS LIBRARY HANDLE(hex); says what it sees, then writes."""

from __future__ import annotations

import asyncio
import ctypes
import sys

import grpc

from llmos.api.memory.v1.buffers_pb2 import BufferHandle
from llmos.lib.buffers import BufferClient
from llmos.lib.cuda import Cuda
from llmos.lib.devicebuffers import DeviceBuffers


async def main(address: str, library: str, handle: str) -> None:
    async with (
        grpc.aio.insecure_channel(address) as channel,
        BufferClient(channel) as buffers,
        DeviceBuffers(buffers, Cuda(library)) as devices,
    ):
        mapping = await devices.open(BufferHandle.FromString(bytes.fromhex(handle)))
        if "libcuda" in library:
            import torch

            numbers = mapping.tensor("float32")
            print(mapping.size, float(numbers.sum()), flush=True)
            numbers[0] = 7
            torch.cuda.synchronize()
        else:  # the stand-in's memory is the host's
            print(mapping.size, ctypes.string_at(mapping.address, 5).decode(), flush=True)
            ctypes.memmove(mapping.address, b"H", 1)
        print("written", flush=True)
        await asyncio.to_thread(sys.stdin.readline)


asyncio.run(main(*sys.argv[1:]))
