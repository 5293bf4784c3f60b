"""Owns who holds a model: it is neither evicted nor unloaded by others while somebody does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

_BACK_S = 5.0  # the kernel gives calls to the next manager as soon as there is one


class Leases:
    """Counts the holders of refs. A hold is over when its holder leaves it or it is revoked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without holders."""
        self._holds: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._expected: dict[str, int] = {}
        self._until = 0.0
        self._clock = clock

    def expect(self, holders: Mapping[str, int]) -> None:
        """Count the holders that an earlier manager had until they are back, for a moment."""
        self._expected = {ref: count for ref, count in holders.items() if count}
        self._until = self._clock() + _BACK_S

    def count(self, ref: str) -> int:
        """Return how many hold a ref."""
        if self._expected and self._clock() > self._until:
            self._expected = {}
        return len(self._holds.get(ref, ())) + self._expected.get(ref, 0)

    @contextlib.contextmanager
    def hold(self, ref: str) -> Iterator[asyncio.Event]:
        """Hold `ref` inside the block; yields what is set when the hold was revoked."""
        revoked = asyncio.Event()
        self._holds[ref].add(revoked)
        if self._expected.get(ref, 0) > 0:
            self._expected[ref] -= 1
        try:
            yield revoked
        finally:
            self._holds[ref].discard(revoked)
            if not self._holds[ref]:
                del self._holds[ref]

    def revoke(self, ref: str) -> None:
        """End all holds of a ref."""
        self._expected.pop(ref, None)
        for revoked in self._holds.pop(ref, set()):
            revoked.set()
