"""Our torch engine alone, in this process: python bare.py MODEL.gguf PRECISION.

For each line `STREAMS SEED` it reads, it prints a line: tokens a second.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path

from together import rate_together

from llmos.servers.execution.engine.base import Generation, ModelSpec
from llmos.servers.execution.engine.torch import load
from llmos.servers.execution.engine.torch.engine import TorchEngine


async def rate(engine: TorchEngine, streams: int, seed: int) -> float:
    """Return tokens a second while all streams decode."""

    async def one(i: int) -> list[float]:
        rng = random.Random(seed + i)
        ids = [rng.randrange(300, 20_000) for _ in range(64)]
        bias = {0: -100.0, 2: -100.0}
        wanted = Generation(tokens=ids, temperature=0, max_tokens=128, logit_bias=bias)
        times: list[float] = []
        async for piece in engine.generate(wanted):
            times += [time.perf_counter()] * len(piece.tokens)
        return times

    return rate_together(await asyncio.gather(*(one(i) for i in range(streams))))


async def main() -> None:
    """Answer until the input ends."""
    path = Path(sys.argv[1])
    spec = ModelSpec("bare@1", "gguf", "generate", {path.name: path}, threads=2)
    engine = load(spec, sys.argv[2])
    while line := await asyncio.to_thread(sys.stdin.readline):
        streams, seed = map(int, line.split())
        print(await rate(engine, streams, 1000 * seed), flush=True)
    engine.close()


if __name__ == "__main__":
    asyncio.run(main())
