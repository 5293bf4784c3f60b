from __future__ import annotations

from typing import Any

import pytest

from llmos.lib.errors import InvalidArgument, ResourceExhausted
from llmos.servers.memory.residency import Report


async def test_life_of_a_grant(world: Any) -> None:
    service = world.residency()
    assert await service.devices() == [("cpu", 200, 100, 0), ("cuda:0", 200, 100, 0)]
    assert await service.acquire("m@1#0", "cpu", 60, True) == []
    assert await service.acquire("m@1#0", "cpu", 70, True) == []
    assert await service.grants() == [("m@1#0", "cpu", 70, 0, False, True)]
    assert (await service.devices())[0] == ("cpu", 200, 100, 70)
    await service.report(Report("m@1#0", "cpu", 70, 65, True, False, 0.0))
    assert await service.grants() == [("m@1#0", "cpu", 70, 65, True, False)]
    await service.release("m@1#0")
    await service.release("m@1#0")
    assert await service.grants() == []


async def test_eviction_is_asked_for_and_then_granted(world: Any) -> None:
    service = world.residency()
    await service.report(
        Report("old", "cpu", 40, 40, False, False, 60.0),
        Report("new", "cpu", 40, 40, False, False, 1.0),
        Report("gpu", "cuda:0", 40, 40, False, False, 99.0),
    )
    assert await service.acquire("next", "cpu", 50) == ["old"]
    await service.release("old")
    assert await service.acquire("next", "cpu", 50) == []
    assert [g[0] for g in await service.grants()] == ["new", "next", "gpu"]
    granted, evicted = await service.changes(2)
    assert granted == (1, "next", "cpu", 50, "") and evicted == (4, "old", "cpu", 40, "next")
    assert [c[0] for c in await service.changes()] == [1, 4, 2, 2, 2]


async def test_over_budget(world: Any) -> None:
    service = world.residency()
    await service.report(Report("busy", "cpu", 40, 40, True, False, 0.0))
    with pytest.raises(ResourceExhausted, match="its budget is 100, 40 are held") as caught:
        await service.acquire("next", "cpu", 61)
    assert caught.value.reason == "OVER_BUDGET" and caught.value.retry_after_s == 0.1
    with pytest.raises(ResourceExhausted) as caught:
        await service.acquire("next", "cuda:0", 101)
    assert caught.value.retry_after_s is None
    assert [g[0] for g in await service.grants()] == ["busy"]


@pytest.mark.parametrize("args", [("", "cpu", 1), ("a", "cpu", 0), ("a", "cuda:7", 1)])
async def test_bad_grants(world: Any, args: tuple[str, str, int]) -> None:
    with pytest.raises(InvalidArgument, match="cpu, cuda:0") as caught:
        await world.residency().acquire(*args)
    assert caught.value.reason == "BAD_GRANT"
