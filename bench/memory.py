"""Buffers: what making one costs, and 4 MiB by handle against 4 MiB in a gRPC message.

Then models: paging, sharing, page-in, cycles (`lib/memory_models.py`; not with --buffers).

Cycles: create, map, touch and free as the client sees it; `_settled` also waits until the server
knows that it was freed, `_tight` is eight in a row, each. `_unlike` has a label of its own
every time, so that nothing of its kind is ready. These three run after all others.

Real processes: kernel, memory server, a consumer, and this one; last line is one JSON object,
times are microseconds at the median of interleaved rounds. Buffers and handles go through the
kernel, as in an LLM OS; inline is plain gRPC from here to the consumer; `empty_call` is a call over
the kernel with nothing in it, which a transfer by handle cannot be below. In every transfer the
sender's bytes start in its private memory, and the consumer touches each page of what it got before
it answers. `there_and_back`: the consumer answers with 4 MiB of its own, too: inline in its
message, by handle copied into a buffer that was lent to it; the sender touches each page of them.
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
import uvloop
from lib import memory_models

from llmos.api.memory.v1.buffers_pb2 import BufferHandle
from llmos.lib.buffers import BufferClient, Mapping
from llmos.lib.config import socket_address
from llmos.lib.port import ExportSpec, Port
from llmos.lib.serve import OPTIONS

SIZE = 4 << 20
PAGE = 4096
ROUNDS = 100
WARM_UP = 10


def touch(data: bytes | memoryview) -> bytes:
    """Read one byte of every page."""
    return str(sum(data[::PAGE])).encode()


async def consume(kernel: str, address: str) -> None:
    """Be the consumer: takes bytes, a handle to open, or a handle that was opened before."""
    port = Port(kernel, "consumer")
    buffers = BufferClient(port.channel)
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

    async def empty(message: bytes, context: Any) -> bytes:
        return b""

    answer = os.urandom(SIZE)

    async def inline_back(data: bytes, context: Any) -> bytes:
        touch(data)
        return answer

    async def lent(message: bytes, context: Any) -> bytes:
        kept["answer"] = await buffers.open(BufferHandle.FromString(message), write=True)
        return b""

    async def reused_back(message: bytes, context: Any) -> bytes:
        await reused(message, context)
        kept["answer"].view[:] = answer
        return b""

    methods = (fresh, reused, empty, lent, reused_back)
    by_handle: Any = {f.__name__: grpc.unary_unary_rpc_method_handler(f) for f in methods}
    port.serve(ExportSpec("Bench"), by_handle)
    await port.start()
    server = grpc.aio.server(options=OPTIONS)
    by_value: Any = {
        f.__name__: grpc.unary_unary_rpc_method_handler(f) for f in (inline, inline_back)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bench", by_value),))
    server.add_insecure_port(address)
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(1)
    await port.stop(1)


@contextmanager
def process(*arguments: str) -> Iterator[None]:
    """Run `python <arguments>` meanwhile."""
    child = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.terminate()
        child.wait()


async def medians_us(parts: dict[str, Callable[[], Awaitable[object]]]) -> dict[str, float]:
    """Return the median time of each part; every round runs them all, one after the other."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(WARM_UP + ROUNDS):
        for name, once in parts.items():
            start = time.perf_counter()
            await once()
            times[name].append(time.perf_counter() - start)
    return {n: round(statistics.median(t[WARM_UP:]) * 1e6, 1) for n, t in times.items()}


async def measure(kernel: str, consumer: str) -> dict[str, float]:
    """Return the results by name."""
    data = os.urandom(SIZE)
    target = memoryview(bytearray(SIZE))  # a bytearray itself would copy twice
    port = Port(kernel, "producer")
    await port.start()
    async with (
        grpc.aio.insecure_channel(consumer, options=OPTIONS) as other,
        BufferClient(port.channel) as buffers,
    ):
        await other.channel_ready()
        held = await buffers.create(SIZE)

        async def send(channel: Any, method: str, message: bytes) -> bytes:
            return bytes(await channel.unary_unary(f"/Bench/{method}")(message))

        def cycle(size: int) -> Callable[[], Awaitable[object]]:
            async def once() -> None:
                mapping = await buffers.create(size)
                mapping.view[0] = 1
                await buffers.free(mapping)

            return once

        async def settled() -> None:
            await cycle(SIZE)()
            await buffers.settled()

        async def tight() -> None:
            for _ in range(8):
                await cycle(SIZE)()

        async def unlike() -> None:
            mapping = await buffers.create(SIZE, os.urandom(4).hex())
            mapping.view[0] = 1
            await buffers.free(mapping)

        async def memcpy() -> None:
            target[:] = data

        async def inline() -> bytes:
            return await send(other, "inline", data)

        async def fresh() -> bytes:
            mapping = await buffers.create(SIZE)
            mapping.view[:] = data
            answer = await send(port.channel, "fresh", mapping.handle.SerializeToString())
            await buffers.free(mapping)
            return answer

        async def reused() -> bytes:
            held.view[:] = data
            return await send(port.channel, "reused", held.handle.SerializeToString())

        async def inline_back() -> bytes:
            return touch(await send(other, "inline_back", data))

        async def reused_back() -> bytes:
            held.view[:] = data
            await send(port.channel, "reused_back", held.handle.SerializeToString())
            return touch(lent.view)

        async def in_place() -> bytes:
            return await send(port.channel, "reused", held.handle.SerializeToString())

        async def empty() -> bytes:
            return await send(port.channel, "empty", b"")

        async def eight(send: Callable[[int], Awaitable[bytes]]) -> None:
            await asyncio.gather(*map(send, range(8)))

        more = [await buffers.create(SIZE) for _ in range(8)]

        async def one_of_eight(i: int) -> bytes:
            more[i].view[:] = data
            return await send(port.channel, "reused", more[i].handle.SerializeToString())

        answers = {await inline(), await fresh(), await reused()}
        assert len(answers) == 1, "the consumer saw different bytes"
        lent = await buffers.create(SIZE)
        await send(port.channel, "lent", lent.handle.SerializeToString())
        assert await inline_back() == await reused_back(), "different answers"
        found = await medians_us(
            {
                # What gives memory back or allocates ahead comes first, memcpy where all is calm.
                "create_map_free_4MiB": cycle(SIZE),
                "4MiB_handle_fresh_buffer": fresh,
                "create_map_free_4KiB": cycle(PAGE),
                "4MiB_inline_grpc": inline,
                "4MiB_inline_there_and_back": inline_back,
                "4MiB_inline_8_at_once": lambda: eight(lambda i: inline()),
                "4MiB_handle_8_at_once": lambda: eight(one_of_eight),
                "4MiB_handle_there_and_back": reused_back,
                "4MiB_handle_in_place": in_place,
                "empty_call": empty,
                "4MiB_handle_reused_buffer": reused,
                "4MiB_memcpy": memcpy,
            }
        )
        # By themselves: what the server does after them would slow down the others.
        found |= await medians_us(
            {
                "create_map_free_4MiB_settled": settled,
                "create_map_free_4MiB_tight": tight,
                "create_map_free_4MiB_unlike": unlike,
            }
        )
        for name in (
            "4MiB_handle_8_at_once",
            "4MiB_inline_8_at_once",
            "create_map_free_4MiB_tight",
        ):
            found[name] = round(found[name] / 8, 1)  # of each
    await port.stop(1)
    return found


def main() -> None:
    """Run it all and print the results."""
    if sys.argv[1:2] == ["--consumer"]:
        uvloop.run(consume(*sys.argv[2:]))
        return
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
        kernel, consumer = (socket_address(Path(folder), n) for n in ("kernel", "consumer"))
        state = ("--state-dir", folder)
        with (
            process("-m", "llmos.kernel", *state, "--tcp", "none"),
            process("-m", "llmos.servers.memory", *state),
            process(__file__, "--consumer", kernel, consumer),
        ):
            results = uvloop.run(measure(kernel, consumer))
    for name, value in results.items():
        print(f"{name:<30}{value:>10,.1f} us")
    handle = results["4MiB_handle_reused_buffer"]
    found = {
        "buffer_cycle_settled_ms": round(results["create_map_free_4MiB_settled"] / 1e3, 3),
        "buffer_cycle_tight_ms": round(results["create_map_free_4MiB_tight"] / 1e3, 3),
        "buffer_cycle_unlike_ms": round(results["create_map_free_4MiB_unlike"] / 1e3, 3),
        "handle_in_place_vs_inline_4mib": round(
            results["4MiB_inline_grpc"] / results["4MiB_handle_in_place"], 2
        ),
        # What no transfer by handle can be below: a call over the kernel and one copy.
        "handle_vs_floor_4mib": round(handle / (results["empty_call"] + results["4MiB_memcpy"]), 2),
        "buffer_cycle_ms": round(results["create_map_free_4MiB"] / 1e3, 3),
        "handle_vs_inline_4mib": round(results["4MiB_inline_grpc"] / handle, 2),
        "handle_vs_memcpy_4mib": round(results["4MiB_memcpy"] / handle, 3),
        "handle_vs_inline_4mib_there_and_back": round(
            results["4MiB_inline_there_and_back"] / results["4MiB_handle_there_and_back"], 2
        ),
        "handle_vs_memcpy_4mib_there_and_back": round(  # two copies of 4 MiB
            2 * results["4MiB_memcpy"] / results["4MiB_handle_there_and_back"], 3
        ),
        "handle_vs_inline_4mib_8": round(
            results["4MiB_inline_8_at_once"] / results["4MiB_handle_8_at_once"], 2
        ),
        "handle_vs_memcpy_4mib_8": round(
            results["4MiB_memcpy"] / results["4MiB_handle_8_at_once"], 3
        ),
    }
    if sys.argv[1:2] != ["--buffers"]:
        found |= uvloop.run(memory_models.measure())
    print(json.dumps({"benchmark": "memory", "rounds": ROUNDS, "us_p50": results, **found}))


if __name__ == "__main__":
    main()
