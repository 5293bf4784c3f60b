"""The order of a data set's rows, and which of them are whose: the same on every host, for ever.

Rows are stored in groups. The order of (seed, epoch) shuffles the groups, and the rows within each
group, so that a reader needs one group at a time. Positions count along this order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def share(rows: int, worker: int, workers: int) -> tuple[int, int]:
    """Return the positions [start, stop) of a worker: all shares together are every row once."""
    return rows * worker // workers, rows * (worker + 1) // workers


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of the order within one group."""

    group: int
    start: int
    stop: int


class Order:
    """The order of the rows of groups with these sizes. seed 0 = as stored."""

    def __init__(self, groups: Sequence[int], seed: int = 0, epoch: int = 0) -> None:
        """Compute the order of the groups; that of their rows when they are asked for."""
        self._groups = groups
        self._key = _mix(_mix(seed) ^ epoch) if seed else None
        self._order: Sequence[int] = range(len(groups))
        if self._key is not None:
            key = self._key
            self._order = sorted(range(len(groups)), key=lambda g: (_mix(key ^ g), g))

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield what makes up the positions [start, stop), in order."""
        at = 0
        for group in self._order:
            size = self._groups[group]
            first, last = max(start, at), min(stop, at + size)
            if first < last:
                yield Piece(group, first - at, last - at)
            at += size
            if at >= stop:
                return

    def rows(self, piece: Piece) -> Any:
        """Return the indices within its group that a piece has, as a NumPy array; None = a slice.

        The indices are sorted by the hash of each: splitmix64 (Steele et al., OOPSLA 2014).
        """
        if self._key is None:
            return None
        import numpy as np

        key = np.uint64(_mix(self._key + piece.group + 1))
        with np.errstate(over="ignore"):
            x = np.arange(self._groups[piece.group], dtype=np.uint64) * np.uint64(_GOLDEN) + key
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x ^= x >> np.uint64(31)
        return np.argsort(x, kind="stable")[piece.start : piece.stop]


def _mix(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
