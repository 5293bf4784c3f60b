"""The epsilon of a data set version in storage's documents: over gRPC and through the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from state_world import state_world

from llmos.lib.errors import ResourceExhausted
from llmos.servers.optimizer.train.budget import EPSILON, Budgets


@pytest.fixture(params=["gRPC", "kernel"])
async def budgets(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Budgets]:
    async with state_world(request.param, tmp_path) as state:
        assert state.channel is not None
        yield Budgets(state.channel)


async def test_jobs_share_a_budget_until_it_is_gone(budgets: Budgets) -> None:
    assert (await budgets.get("mails@1")).epsilon == EPSILON
    await budgets.reserve("mails@1", "first", 6)
    await budgets.reserve("mails@1", "first", 6)  # resumed after a crash: set aside once
    with pytest.raises(ResourceExhausted) as caught:
        await budgets.reserve("mails@1", "second", 5)
    assert caught.value.reason == "PRIVACY_BUDGET_EXHAUSTED"
    assert "epsilon 5 of mails@1, and 4 of 10 is left" in caught.value.message
    await budgets.settle("mails@1", "first", 2.5)  # it stopped early
    await budgets.reserve("mails@1", "second", 5)
    assert (await budgets.get("mails@1")).spent == 7.5
    await budgets.reserve("mails@2", "second", 10)  # another version: other rows
    assert (await budgets.allow("mails@1", 20)).jobs == {"first": 2.5, "second": 5}
    await budgets.reserve("mails@1", "third", 12.5)


async def test_many_jobs_at_once_spend_no_more_than_there_is(budgets: Budgets) -> None:
    results = await asyncio.gather(
        *(budgets.reserve("d@1", f"job{i}", 3) for i in range(8)), return_exceptions=True
    )
    assert sum(result is None for result in results) == 3
    assert (await budgets.get("d@1")).spent == 9
