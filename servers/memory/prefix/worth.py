"""Which blocks go first: GreedyDual-Size with recency and depth.

P. Cao and S. Irani, "Cost-Aware WWW Proxy Caching Algorithms", USENIX Symposium on Internet
Technologies and Systems, 1997: what is used is worth L + cost / size, where L is the worth of what
was evicted last, so that what was dear long ago gets cheaper than what is used now.

Cost / size is the mean of the space, not of the run: blocks deep in a text take longer to compute
(attention sees all before them), yet are of no use without those before them. Of equals the one
that was used longest ago goes first, and of those used together the deepest.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmos.servers.memory.prefix.run import Run, Shelf


class Worth:
    """Gives runs their worth. Cost and size are compared between spaces only."""

    def __init__(self) -> None:
        """Start: nothing was evicted yet."""
        self._level = 0.0
        self._uses = 0

    def use(self, shelf: Shelf, runs: Iterable[Run], known: Iterable[Shelf]) -> None:
        """Mark runs as used together, now. known: all spaces, for one whose cost is not known."""
        self._uses += 1
        rate = shelf.rate or _mean(known)
        for run in runs:
            run.worth = (self._level + rate, self._uses, -run.depth)

    def victim(self, runs: Iterable[Run]) -> Run | None:
        """Return the run that is worth least; None when there is none."""
        return min(runs, key=lambda run: run.worth, default=None)

    def evicted(self, run: Run) -> None:
        """Raise the level: `run` was let go for want of room."""
        self._level = max(self._level, run.worth[0])


def _mean(shelves: Iterable[Shelf]) -> float:
    rates = [shelf.rate for shelf in shelves if shelf.rate]
    return sum(rates) / len(rates) if rates else 1.0
