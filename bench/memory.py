"""Buffers: what making one costs, and 4 MiB by handle against 4 MiB in a gRPC message.

Then models: paging, sharing, page-in, cycles (`lib/memory_models.py`; not with --buffers).

Real processes: a memory server, a consumer, and this one; last line is one JSON object, times are
microseconds at the median. In every transfer the sender's bytes start in its private memory, and
the consumer touches each page of what it got before it answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from lib import memory_models

from llmos.api.memory.v1.buffers_pb2 import BufferHandle
from llmos.lib.buffers import BufferClient, Mapping
from llmos.lib.config import socket_address
from llmos.lib.serve import OPTIONS

SIZE = 4 << 20
PAGE = 4096
ROUNDS = 300
WARM_UP = 20


def touch(data: bytes | memoryview) -> bytes:
    """Read one byte of every page."""
    return str(sum(data[::PAGE])).encode()


async def consume(memory: str, address: str) -> None:
    """Be the consumer: takes bytes, a handle to open, or a handle that was opened before."""
    async with grpc.aio.insecure_channel(memory) as channel, BufferClient(channel) as buffers:
        kept: dict[str, Mapping] = {}

        async def inline(data: bytes, context: Any) -> bytes:
            return touch(data)

        async def fresh(message: bytes, context: Any) -> bytes:
            mapping = await buffers.open(BufferHandle.FromString(message))
            answer = touch(mapping.view)
            await buffers.free(mapping)
            return answer

        async def reused(message: bytes, context: Any) -> bytes:
            handle = BufferHandle.FromString(message)
            if handle.id not in kept:
                kept[handle.id] = await buffers.open(handle)
            return touch(kept[handle.id].view)

        server = grpc.aio.server(options=OPTIONS)
        methods: dict[str, Any] = {
            f.__name__: grpc.unary_unary_rpc_method_handler(f) for f in (inline, fresh, reused)
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bench", methods),))
        server.add_insecure_port(address)
        await server.start()
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        await server.stop(1)


@contextmanager
def process(*arguments: str) -> Iterator[None]:
    """Run `python <arguments>` meanwhile."""
    child = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.terminate()
        child.wait()


async def median_us(once: Callable[[], Awaitable[object]]) -> float:
    """Return the median time of `once`."""
    times = []
    for _ in range(WARM_UP + ROUNDS):
        start = time.perf_counter()
        await once()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times[WARM_UP:]) * 1e6, 1)


async def measure(memory: str, consumer: str) -> dict[str, float]:
    """Return the results by name."""
    data = os.urandom(SIZE)
    target = bytearray(SIZE)
    async with (
        grpc.aio.insecure_channel(memory, options=OPTIONS) as channel,
        grpc.aio.insecure_channel(consumer, options=OPTIONS) as other,
        BufferClient(channel) as buffers,
    ):
        await asyncio.gather(channel.channel_ready(), other.channel_ready())
        held = await buffers.create(SIZE)

        async def send(method: str, message: bytes) -> bytes:
            call: Any = other.unary_unary(f"/Bench/{method}")
            return bytes(await call(message))

        def cycle(size: int) -> Callable[[], Awaitable[object]]:
            async def once() -> None:
                mapping = await buffers.create(size)
                mapping.view[0] = 1
                await buffers.free(mapping)

            return once

        async def memcpy() -> None:
            target[:] = data

        async def inline() -> bytes:
            return await send("inline", data)

        async def fresh() -> bytes:
            mapping = await buffers.create(SIZE)
            mapping.view[:] = data
            answer = await send("fresh", mapping.handle.SerializeToString())
            await buffers.free(mapping)
            return answer

        async def reused() -> bytes:
            held.view[:] = data
            return await send("reused", held.handle.SerializeToString())

        answers = {await inline(), await fresh(), await reused()}
        assert len(answers) == 1, "the consumer saw different bytes"
        return {
            "create_map_free_4KiB": await median_us(cycle(PAGE)),
            "create_map_free_4MiB": await median_us(cycle(SIZE)),
            "4MiB_memcpy": await median_us(memcpy),
            "4MiB_handle_reused_buffer": await median_us(reused),
            "4MiB_handle_fresh_buffer": await median_us(fresh),
            "4MiB_inline_grpc": await median_us(inline),
        }


def main() -> None:
    """Run it all and print the results."""
    if sys.argv[1:2] == ["--consumer"]:
        asyncio.run(consume(*sys.argv[2:]))
        return
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
        memory, consumer = (socket_address(Path(folder), n) for n in ("memory", "consumer"))
        server = ("-m", "llmos.servers.memory", "--state-dir", folder, "--kernel", "none")
        with process(*server), process(__file__, "--consumer", memory, consumer):
            results = asyncio.run(measure(memory, consumer))
    for name, value in results.items():
        print(f"{name:<28}{value:>10,.1f} us")
    handle = results["4MiB_handle_reused_buffer"]
    found = {
        "buffer_cycle_ms": round(results["create_map_free_4MiB"] / 1e3, 3),
        "handle_vs_inline_4mib": round(results["4MiB_inline_grpc"] / handle, 2),
        "handle_vs_memcpy_4mib": round(results["4MiB_memcpy"] / handle, 3),
    }
    if sys.argv[1:2] != ["--buffers"]:
        found |= asyncio.run(memory_models.measure())
    print(json.dumps({"benchmark": "memory", "rounds": ROUNDS, "us_p50": results, **found}))


if __name__ == "__main__":
    main()
