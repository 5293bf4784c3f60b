"""Calls that must not run twice, while kernel and server are killed: once, and the truth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kernel_faults import Cell, cell, failure


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Cell]:
    async with cell(tmp_path) as made:
        await made.server("a")
        yield made


async def test_the_kernel_is_killed_while_it_runs(world: Cell) -> None:
    long, short = world.put("long", 3), world.put("short", 0.3)
    await world.started("long", "short")
    world.kernel.kill()
    await world.until(lambda: world.count("end", "short") == 1)  # answered while nobody listens
    world.kernel.start()
    assert (await long, await short) == ("long", "short")
    assert world.count("start", "long") == world.count("start", "short") == 1


async def test_the_kernel_is_killed_again_and_again(world: Cell) -> None:
    long = world.put("long", 4)
    await world.started("long")
    for _ in range(3):
        world.kernel.kill()
        world.kernel.start()
        await world.ask("attached", 0)
    assert await long == "long"
    assert world.count("start", "long") == 1


async def test_the_server_dies_between_work_and_answer(world: Cell) -> None:
    put = world.put("put", 60)
    await world.started("put")
    await world.server("b")
    world.signal("a")
    assert (await failure(put)).reason == "SERVER_DIED_MAY_HAVE_RUN"
    assert world.count("start", "put") == 1


async def test_kernel_and_server_die(world: Cell) -> None:
    """The next server knows nothing of the call, and does not run it."""
    put = world.put("put", 60)
    await world.started("put")
    world.kernel.kill()
    world.signal("a")
    world.kernel.start()
    await world.server("a")
    assert (await failure(put)).reason == "KERNEL_LOST_MAY_HAVE_RUN"
    assert world.count("start", "put") == 1


async def test_a_client_that_repeats_its_request_id(world: Cell) -> None:
    first, joined = world.put("put", 0.5, "id-1"), world.put("put", 0.5, "id-1")
    assert (await first, await joined) == ("put", "put")
    assert await world.put("put", 0.5, "id-1") == "put"
    assert world.count("start", "put") == 1
    await world.put("put", 0, "id-2")
    assert world.count("start", "put") == 2


async def test_a_cancelled_call_is_stopped_and_may_be_made_again(world: Cell) -> None:
    put = world.put("put", 60, "id-1")
    await world.started("put")
    put.cancel()
    await asyncio.gather(put, return_exceptions=True)
    await world.until(lambda: world.count("cancel", "put") == 1)
    assert await world.put("put", 0, "id-1") == "put"
