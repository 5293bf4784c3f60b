"""An engine without work gives memory back, once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmos.servers.execution import heap
from llmos.servers.execution.engine.base import Generation
from llmos.servers.execution.engine.torch import loop
from llmos.servers.execution.engine.torch.engine import load


async def test_what_steps_used_is_given_back_once_and_after_each_work(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[None] = []
    monkeypatch.setattr(heap, "give_back", lambda: given.append(None))
    monkeypatch.setattr(loop, "_IDLE_S", 0.01)
    engine = load(tiny.spec(), "float32")

    async def given_back(times: int) -> None:
        async with asyncio.timeout(30):
            while len(given) < times:
                await asyncio.sleep(0.01)

    try:
        await given_back(1)  # of the load
        await asyncio.sleep(0.1)
        assert len(given) == 1  # there is nothing new to give
        before = len(given)
        async for _ in engine.generate(Generation(prompt="a", temperature=0, max_tokens=3)):
            pass
        await given_back(before + 1)
    finally:
        engine.close()
