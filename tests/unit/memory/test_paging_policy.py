"""The order of eviction, and that it is worth its name on a day's traffic."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from llmos.servers.memory.policy import GreedyDual


def simulator() -> Any:
    """Load bench/paging_sim.py, which is no package."""
    path = Path(__file__).parents[3] / "bench" / "paging_sim.py"
    spec = importlib.util.spec_from_file_location("paging_sim", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["paging_sim"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_uses_fade_and_are_remembered() -> None:
    policy = GreedyDual(half_life_s=100)
    for _ in range(4):
        policy.used("old", 0, size=1, reload_s=1)
    policy.used("new", 100, size=1, reload_s=1)
    assert policy.order(["old", "new"]) == ["new", "old"]  # 4 halved once is more than 1
    policy.used("new", 300, size=1, reload_s=1)
    assert policy.order(["old", "new"]) == ["old", "new"]
    assert policy.order(["new", "stranger"]) == ["stranger", "new"]


def test_a_very_long_life_does_not_overflow() -> None:
    policy = GreedyDual()
    for at in (0.0, 1e9, 2e9):
        policy.used("a", at, size=1 << 40, reload_s=0.0)
    policy.used("b", 2e9 + 1, size=1 << 40, reload_s=0.0)
    assert policy.order(["b", "a"]) == ["b", "a"] or policy.value("a") < policy.value("b")


def test_it_beats_lru_and_lfu_and_is_near_belady() -> None:
    paging_sim = simulator()
    trace = paging_sim.make(1000, 20_000, 1.0, 3)
    room = int(trace.sizes.sum() * 0.1)
    ours, lru, lfu, best = (
        paging_sim.replay(trace, room, policy)
        for policy in (
            paging_sim.Ours(trace),
            paging_sim.Lru(),
            paging_sim.Lfu(),
            paging_sim.Belady(trace),
        )
    )
    assert ours[0] > max(lru[0], lfu[0]) and ours[1] < min(lru[1], lfu[1])
    assert ours[0] > 0.85 * best[0]
