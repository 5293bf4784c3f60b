"""Keys and values of running sequences, and attention over them.

A *seat* is one sequence's room for a number of positions known beforehand. Seats of one size live
side by side in a *slab*, so that one batched product serves a token of each. (Pages instead of
seats can come behind the same four methods.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

_SMALLEST = 256  # positions of the smallest seat; sizes are powers of two
_SLAB_SEATS = 8
_SLAB_TOKENS = 8192  # a slab of long seats has fewer of them
STRIDE = 64  # attention spans are padded to this: whole vectors, so that padding adds exact zeros


@dataclass(frozen=True)
class Geometry:
    """What the cache has to know of the model. `group`: query heads per key head."""

    layers: int
    kv_heads: int
    group: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def heads(self) -> int:
        """Return the number of query heads."""
        return self.kv_heads * self.group


@dataclass(eq=False)
class Slab:
    """Seats of one size. data: [layers, 2 (key, value), seats, kv_heads, positions, head_dim]."""

    data: Tensor
    positions: int
    seats: list[Seat] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Say whether all seats are taken."""
        return len(self.seats) == self.data.shape[2]

    @property
    def tokens(self) -> int:
        """Return the positions of all seats, taken or not."""
        return int(self.data.shape[2]) * self.positions


@dataclass(eq=False)
class Seat:
    """Room for one sequence. `slot` changes when a lower seat of the slab becomes free."""

    slab: Slab
    slot: int
    used: int = 0


class KVCache:
    """Hands out seats within a budget of positions. Not thread-safe: the step loop owns it."""

    def __init__(self, geometry: Geometry, budget: int) -> None:
        """Allow `budget` positions in all; nothing is allocated yet."""
        self.geometry, self._budget = geometry, _whole(budget)
        self._slabs: list[Slab] = []

    def reserve(self, positions: int) -> Seat | None:
        """Return a seat for that many positions, or None until others are released."""
        size = _SMALLEST
        while size < positions:
            size *= 2
        if size > self._budget:
            size = _whole(positions)
        for slab in self._slabs:
            if slab.positions == size and not slab.full:
                break
        else:
            left = self._budget - sum(slab.tokens for slab in self._slabs)
            seats = min(max(1, _SLAB_TOKENS // size), _SLAB_SEATS, left // size)
            if seats < 1:
                return None
            slab = Slab(self._allocate(seats, size), size)
            self._slabs.append(slab)
        seat = Seat(slab, len(slab.seats))
        slab.seats.append(seat)
        return seat

    def release(self, seat: Seat) -> None:
        """Take the seat back. The slab's last seat moves into the gap; an empty slab is freed."""
        slab, last = seat.slab, seat.slab.seats.pop()
        if last is not seat:
            slab.data[:, :, seat.slot, :, : last.used] = slab.data[:, :, last.slot, :, : last.used]
            last.slot = seat.slot
            slab.seats[seat.slot] = last
        if not slab.seats:
            self._slabs.remove(slab)

    def order(self, seat: Seat) -> tuple[int, int]:
        """Return a sort key: rows in this order make the fewest, largest products."""
        return self._slabs.index(seat.slab), seat.slot

    def _allocate(self, seats: int, size: int) -> Tensor:
        g = self.geometry
        shape = (g.layers, 2, seats, g.kv_heads, size, g.head_dim)
        if g.device.type != "cpu":
            return torch.zeros(shape, dtype=g.dtype, device=g.device)
        # numpy takes zero pages from the system, which cost memory only once written to.
        kind = np.float32 if g.dtype == torch.float32 else np.uint16
        return torch.from_numpy(np.zeros(shape, kind)).view(g.dtype)


def _whole(positions: int) -> int:
    return -(-positions // STRIDE) * STRIDE


@dataclass(frozen=True)
class Span:
    """`count` new tokens of a sequence, the first at position `start`."""

    seat: Seat
    start: int
    count: int


def group_spans(spans: Sequence[Span]) -> list[list[Span]]:
    """Group neighbouring one-token spans of one slab; longer spans stay alone."""
    groups: list[list[Span]] = []
    for span in spans:
        last = groups[-1] if groups else None
        if last and span.count == last[0].count == 1 and span.seat.slab is last[0].seat.slab:
            last.append(span)
        else:
            groups.append([span])
    return groups
