"""A person's call where BATCH holds the whole cache: one of it gives way, no token changes."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from llmos.servers.execution.engine.base import BATCH, INTERACTIVE, Generation
from llmos.servers.execution.engine.torch import load
from llmos.servers.execution.engine.torch.engine import TorchEngine

NEVER = {0: -100.0, 1: -100.0, 2: -100.0}  # ends


async def tokens_of(engine: TorchEngine, request: Generation) -> list[int]:
    return [token async for piece in engine.generate(request) for token in piece.tokens]


def stop_in_step(engine: TorchEngine, number: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the compute thread stop in that step; returns what it sets and what it waits for."""
    there, go_on, step = threading.Event(), threading.Event(), engine._model.step
    steps = iter(range(1, 1_000_000))

    def stopping(*given: Any) -> Any:
        if next(steps) == number:
            there.set()
            assert go_on.wait(60)
        return step(*given)

    monkeypatch.setattr(engine._model, "step", stopping)
    return there, go_on


async def test_batch_gives_way_and_says_the_same(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny.spec(context_length=128), "float32")  # 32 blocks
    jobs = engine._loop._jobs
    batch = [
        Generation(tokens=[*range(9 + i, 73 + i)], max_tokens=30, seed=i, rank=BATCH)
        for i in range(12)
    ]
    person = Generation(tokens=[*range(40, 110)], max_tokens=10, seed=99, rank=INTERACTIVE)
    requests = [Generation(**{**vars(r), "logit_bias": NEVER}) for r in (*batch, person)]
    try:
        alone = [await tokens_of(engine, request) for request in requests]
        there, go_on = stop_in_step(engine, 12, monkeypatch)
        running = [asyncio.ensure_future(tokens_of(engine, request)) for request in requests[:-1]]
        with engine._loop._changed:  # all are there before the first is computed
            while len(jobs.waiting) < len(batch):
                await asyncio.sleep(0)
        assert await asyncio.to_thread(there.wait, 60)
        assert all(job.rank == BATCH for job in jobs.running) and engine._loop._cache.pages.free < 3
        running.append(asyncio.ensure_future(tokens_of(engine, requests[-1])))
        while not any(job.rank == INTERACTIVE for job in jobs.waiting):
            await asyncio.sleep(0)
        driven_out: list[int] = []
        preempt = jobs._preempt

        def seen(rank: int) -> bool:
            driven_out.append(rank)
            return preempt(rank)

        monkeypatch.setattr(jobs, "_preempt", seen)
        before = jobs.preemptions
        go_on.set()
        together = await asyncio.gather(*running)
        assert INTERACTIVE in driven_out and jobs.preemptions > before
        assert together == alone
    finally:
        engine.close()
