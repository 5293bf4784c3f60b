"""The processes of bench/ipc.py: echo servers, a proxy, and closed- and open-loop load."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import uvloop

from llmos.lib.port import ExportSpec, Port
from llmos.lib.serve import OPTIONS
from llmos.lib.tuning import quiet_gc

METHOD = "/bench.Echo/Echo"
Ask = Callable[[bytes], Awaitable[bytes]]


class _Generic(grpc.GenericRpcHandler):
    def __init__(self, behaviour: Callable[[bytes, Any], Awaitable[bytes]]) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(behaviour)

    def service(self, handler_call_details: Any) -> Any:
        return self._handler


async def _listen(address: str, behaviour: Callable[[bytes, Any], Awaitable[bytes]]) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_Generic(behaviour),))
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


async def direct(address: str) -> None:
    """A grpc.aio echo server: the floor."""

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    await _listen(address, echo)


async def proxy(address: str, upstream: str) -> None:
    """A grpc.aio proxy hop: what a kernel without batching would be."""
    call: Any = grpc.aio.insecure_channel(upstream, options=OPTIONS).unary_unary(METHOD)

    async def forward(request: bytes, context: Any) -> bytes:
        reply: bytes = await call(request)
        return reply

    await _listen(address, forward)


async def port_server(kernel: str, seconds: str, credits: str) -> None:
    """An echo server on a port that takes `seconds` for each call and has `credits`."""
    port = Port(kernel, "echo")
    pause = float(seconds)

    async def echo(request: bytes, context: Any) -> bytes:
        if pause:
            await asyncio.sleep(pause)
        return request

    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    port.serve(ExportSpec("bench.Echo", ("",), int(credits)), handlers)
    await port.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


async def bulk_server(kernel: str) -> None:
    """A server that streams as many MiB as it is asked for, 1 MiB a message."""
    port = Port(kernel, "bulk")
    piece = bytes(1 << 20)

    async def read(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(int(request)):
            yield piece

    handlers = {"Read": grpc.unary_stream_rpc_method_handler(read)}
    port.serve(ExportSpec("bench.Bulk"), handlers)
    await port.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


async def pour(kernel: str, mib: str) -> None:
    """Read streams of `mib` MiB, one after the other, until killed; a line for each."""
    port = Port(kernel, "pour")
    await port.start()
    call: Any = port.channel.unary_stream("/bench.Bulk/Read")
    print("ready", flush=True)
    while True:
        start = time.perf_counter()
        async for _ in call(mib.encode()):
            pass
        print(json.dumps({"mib_per_s": int(mib) / (time.perf_counter() - start)}), flush=True)


async def _asker(kind: str, address: str, call_class: str, timeout: float | None) -> Ask:
    if kind == "port":
        port = Port(address, "load")
        await port.start()
        channel = port.channel
    else:
        channel = grpc.aio.insecure_channel(address, options=OPTIONS)
    call: Any = channel.unary_unary(METHOD)
    metadata = (("llmos-class", call_class),) if call_class else None

    async def ask(payload: bytes) -> bytes:
        reply: bytes = await call(payload, metadata=metadata, timeout=timeout)
        return reply

    return ask


def _report(latencies: list[float], seconds: float, **more: object) -> None:
    latencies.sort()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    count = len(latencies)
    print(
        json.dumps(
            {
                "rate": count / seconds,
                "p50_ms": latencies[count // 2] * 1e3 if count else None,
                "p99_ms": latencies[int(count * 0.99)] * 1e3 if count else None,
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "calls": count,
                **more,
            }
        ),
        flush=True,
    )


async def load(
    kind: str, address: str, outstanding: str, seconds: str, size: str, call_class: str = ""
) -> None:
    """Closed loop: `outstanding` calls at a time for `seconds`."""
    ask = await _asker(kind, address, call_class, None)
    payload = b"x" * int(size)
    for _ in range(20):
        await ask(payload)
    latencies: list[float] = []
    clock = time.perf_counter
    end = clock() + float(seconds)

    async def worker() -> None:
        while (start := clock()) < end:
            await ask(payload)
            latencies.append(clock() - start)

    start = clock()
    await asyncio.gather(*[worker() for _ in range(int(outstanding))])
    _report(latencies, clock() - start)


async def flood(kind: str, address: str, per_s: str, seconds: str, timeout: str) -> None:
    """Open loop: calls arrive at a rate whatever happens to those before; counts the good ones."""
    ask = await _asker(kind, address, "", float(timeout))
    good: list[float] = []
    refused = 0

    async def one() -> None:
        nonlocal refused
        start = time.perf_counter()
        try:
            await ask(b"x" * 128)
            good.append(time.perf_counter() - start)
        except grpc.aio.AioRpcError:
            refused += 1

    tasks: set[asyncio.Task[None]] = set()
    start = time.perf_counter()
    total = int(float(per_s) * float(seconds))
    for i in range(total):
        delay = start + i / float(per_s) - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        task = asyncio.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    offered_s = time.perf_counter() - start
    if tasks:
        await asyncio.wait(tasks)
    _report(good, offered_s, refused=refused, offered=total)


ROLES: dict[str, Callable[..., Any]] = {
    "direct": direct,
    "proxy": proxy,
    "port-server": port_server,
    "bulk-server": bulk_server,
    "pour": pour,
    "load": load,
    "flood": flood,
}

if __name__ == "__main__":
    quiet_gc()  # as the kernel's and the servers' mains do, for floors and ours alike
    uvloop.run(ROLES[sys.argv[1]](*sys.argv[2:]))
