"""Who waits for room, in which order. A place is kept by asking again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

KEEP_S = 2.0  # who did not ask again for so long has gone away
PATIENCE_S = 1.0  # from then on busy grants of the same class or lower are asked to go, too
SENIOR = 4.0  # times the patience, for each class that the busy one is above


@dataclass
class Place:
    """One that waits: `size` bytes on `device`, class `rank`, since when, last asked when."""

    id: str
    device: str
    size: int
    rank: int
    since: float
    seen: float


class Line:
    """Places by class, then by time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty."""
        self._clock = clock
        self._places: dict[str, Place] = {}

    def join(self, id: str, device: str, size: int, rank: int) -> Place:
        """Return the place of `id`, taken now or before."""
        now = self._clock()
        place = self._places.get(id)
        if place is None or now - place.seen > KEEP_S or place.device != device:
            place = self._places[id] = Place(id, device, size, rank, now, now)
        place.size, place.rank, place.seen = size, min(rank, place.rank), now
        return place

    def leave(self, id: str) -> None:
        """Forget a place, if there is one."""
        self._places.pop(id, None)

    def waiting(self, device: str) -> list[Place]:
        """Return who waits for a device, first first."""
        now = self._clock()
        for id in [p.id for p in self._places.values() if now - p.seen > KEEP_S]:
            del self._places[id]
        found = [p for p in self._places.values() if p.device == device]
        return sorted(found, key=lambda p: (p.rank, p.since))

    def ahead(self, id: str, device: str, rank: int) -> list[Place]:
        """Return who comes before `id`, which may have no place yet."""
        before = []
        for place in self.waiting(device):
            if place.id == id:
                break
            if place.rank <= rank:
                before.append(place)
        return before

    def presses(self, place: Place, rank: int) -> bool:
        """Return whether one waits long enough to have a busy grant of class `rank` end."""
        return self._clock() - place.since >= PATIENCE_S * SENIOR ** max(0, place.rank - rank)
