"""A day of traffic to 10,000 models in the room of 1,000, by policy: ours, LRU, LFU, Belady.

A replay without an operating system: it drives the very class that the memory server decides by
(`llmos.servers.memory.policy.GreedyDual`). Sizes are log-normal (median 1 GiB), loading takes
0.2 s + 1 s per GiB. Popularity is Zipf (1.0) and drifts: every hour 2 % of the models change their
rank. Rates follow the time of day. Belady evicts what is wanted again last: it knows the future
and is no bound where sizes differ, but no policy can be expected to pass it by much.
Last line is one JSON object: the share of calls that found their model, and hours spent loading.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llmos.servers.memory.policy import GreedyDual

GIB = 1 << 30


@dataclass(frozen=True)
class Trace:
    """Calls in order: wanted[i] is a model, at[i] seconds, next[i] the next one; sizes in bytes."""

    sizes: np.ndarray
    wanted: np.ndarray
    at: np.ndarray
    next: np.ndarray


def make(models: int, calls: int, alpha: float, seed: int) -> Trace:
    """Return a day of traffic."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(rng.lognormal(math.log(GIB), 0.8, models), GIB / 16, 40 * GIB).astype(np.int64)
    shares = 1 / np.arange(1, models + 1) ** alpha
    shares /= shares.sum()
    hours = 1 + 0.7 * np.sin((np.arange(24) - 8) / 24 * 2 * math.pi)
    counts = np.round(hours / hours.sum() * calls).astype(int)
    of_rank = rng.permutation(models)
    wanted, at = [], []
    for hour, count in enumerate(counts):
        moved = rng.choice(models, max(2, models // 50), replace=False)
        of_rank[moved] = of_rank[rng.permutation(moved)]
        wanted.append(of_rank[rng.choice(models, count, p=shares)])
        at.append(np.sort(rng.uniform(3600 * hour, 3600 * (hour + 1), count)))
    calls_ = np.concatenate(wanted)
    following = np.full(len(calls_), len(calls_), np.int64)
    last: dict[int, int] = {}
    for i in range(len(calls_) - 1, -1, -1):
        following[i] = last.get(int(calls_[i]), len(calls_))
        last[int(calls_[i])] = i
    return Trace(sizes, calls_, np.concatenate(at), following)


def reload_s(size: int) -> float:
    """Return the seconds that loading takes."""
    return 0.2 + size / GIB


class Policy(ABC):
    """Gives every resident model a value when it is used; the lowest goes first."""

    @abstractmethod
    def used(self, model: int, call: int) -> float:
        """Return the model's value from now on."""


class Lru(Policy):
    """Least recently used."""

    def used(self, model: int, call: int) -> float:
        """Return when."""
        return call


class Lfu(Policy):
    """Least frequently used since the morning."""

    def __init__(self) -> None:
        """Start from nothing."""
        self._uses: dict[int, int] = {}

    def used(self, model: int, call: int) -> float:
        """Return how often."""
        self._uses[model] = self._uses.get(model, 0) + 1
        return self._uses[model]


class Belady(Policy):
    """What is wanted again last."""

    def __init__(self, trace: Trace) -> None:
        """Know the future."""
        self._next = trace.next

    def used(self, model: int, call: int) -> float:
        """Return how soon it is wanted again."""
        return -float(self._next[call])


class Ours(Policy):
    """The memory server's."""

    def __init__(self, trace: Trace) -> None:
        """Start from nothing."""
        self._trace = trace
        self._policy = GreedyDual()

    def used(self, model: int, call: int) -> float:
        """Return the value by GreedyDual."""
        size = int(self._trace.sizes[model])
        at = float(self._trace.at[call])
        self._policy.used(str(model), at, size=size, reload_s=reload_s(size))
        return self._policy.value(str(model))


def replay(trace: Trace, room: int, policy: Policy) -> tuple[float, float]:
    """Return the share of calls that found their model, and the hours of loading."""
    value: dict[int, float] = {}
    heap: list[tuple[float, int]] = []
    used, hits, loading = 0, 0, 0.0
    for call, model in enumerate(trace.wanted.tolist()):
        hit = model in value
        hits += hit
        if not hit:
            size = int(trace.sizes[model])
            loading += reload_s(size)
            used += size
            while used > room:
                lowest, victim = heapq.heappop(heap)
                if value.get(victim) == lowest:
                    del value[victim]
                    used -= int(trace.sizes[victim])
        value[model] = policy.used(model, call)
        heapq.heappush(heap, (value[model], model))
    return hits / len(trace.wanted), loading / 3600


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--room", type=float, default=0.1, help="share of all models' bytes")
    parser.add_argument("--calls", type=int, default=400_000)
    parser.add_argument("--alpha", type=float, default=1.0, help="skew of Zipf's law")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    trace = make(args.models, args.calls, args.alpha, args.seed)
    room = int(trace.sizes.sum() * args.room)
    policies: dict[str, Callable[[], Policy]] = {
        "ours": lambda: Ours(trace),
        "lru": Lru,
        "lfu": Lfu,
        "belady": lambda: Belady(trace),
    }
    result: dict[str, object] = {"benchmark": "paging_sim", **vars(args)}
    for name, new in policies.items():
        hit, hours = replay(trace, room, new())
        print(f"{name:<8}{hit:>8.1%} of calls found their model;{hours:>9.1f} h of loading")
        result[f"{name}_hit_rate"] = round(hit, 4)
        result[f"{name}_loading_h"] = round(hours, 2)
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
