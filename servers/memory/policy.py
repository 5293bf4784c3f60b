"""Which models to give up first when room is wanted: GreedyDual-Size, aged by time.

The value of a model is  uses * reload_s * weight / size:  what it saves per byte that it takes.
Uses fade by a half-life, and are remembered for models that are gone, so that a popular one is no
stranger when it returns.

P. Cao and S. Irani, "Cost-Aware WWW Proxy Caching Algorithms", USITS 1997 (GreedyDual-Size: cost by
size, aged by a level that rises with each eviction); L. Cherkasova, "Improving WWW Proxies
Performance with Greedy-Dual-Size-Frequency Caching Policy", HP Labs HPL-98-69, 1998 (times uses);
D. Lee et al., "LRFU", IEEE Transactions on Computers 50(12), 2001 (uses that fade, in place of the
level: `bench/paging_sim.py` finds 3 to 4 % more calls served at once than with the level).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WEIGHT = {1: 8.0, 2: 4.0, 3: 2.0, 4: 1.0}  # by class: SYSTEM, INTERACTIVE, NORMAL, BATCH
_REMEMBERED = 100_000  # models whose uses are known, resident or not


@dataclass
class _Item:
    uses: float = 0.0
    at: float = 0.0  # when `uses` was right
    value: float = -math.inf


class GreedyDual:
    """The values of models by id. Times in seconds on any clock, sizes in bytes."""

    def __init__(self, half_life_s: float = 7200.0) -> None:
        """Start without a history. half_life_s: after so long a use counts half."""
        self._fade = math.log(2) / half_life_s
        self._items: dict[str, _Item] = {}

    def used(
        self, id: str, now: float, *, size: int, reload_s: float, rank: int = 3, times: float = 1
    ) -> None:
        """Note `times` uses of a model. rank: the class that uses it, 1 SYSTEM to 4 BATCH."""
        item = self._items.pop(id, None) or _Item(at=now)
        self._items[id] = item  # last in the order of use, for `_forget`
        item.uses = item.uses * math.exp(-self._fade * max(0.0, now - item.at)) + times
        item.at = now
        saved = item.uses * max(reload_s, 1e-3) * WEIGHT.get(rank, 2.0) / max(1, size)
        # All values fade alike, so instead of fading them all, what is newer is worth more; the
        # logarithm, as that grows without bound.
        item.value = math.log(saved) + self._fade * now
        self._forget()

    def value(self, id: str) -> float:
        """Return the logarithm of the value; higher stays longer. -inf: was never used."""
        item = self._items.get(id)
        return item.value if item is not None else -math.inf

    def order(self, ids: list[str]) -> list[str]:
        """Return the ids, first to go first; equal ones by their last use."""
        return sorted(ids, key=lambda id: (self.value(id), self._last(id)))

    def _last(self, id: str) -> float:
        item = self._items.get(id)
        return item.at if item is not None else -math.inf

    def _forget(self) -> None:
        while len(self._items) > _REMEMBERED:
            del self._items[next(iter(self._items))]
