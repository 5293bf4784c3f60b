"""Owns who holds a model: it is neither evicted nor unloaded by others while somebody does."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator


class Leases:
    """Counts the holders of refs. A hold is over when its holder leaves it or it is revoked."""

    def __init__(self) -> None:
        """Start without holders."""
        self._holds: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def count(self, ref: str) -> int:
        """Return how many hold a ref."""
        return len(self._holds.get(ref, ()))

    @contextlib.contextmanager
    def hold(self, ref: str) -> Iterator[asyncio.Event]:
        """Hold `ref` inside the block; yields what is set when the hold was revoked."""
        revoked = asyncio.Event()
        self._holds[ref].add(revoked)
        try:
            yield revoked
        finally:
            self._holds[ref].discard(revoked)
            if not self._holds[ref]:
                del self._holds[ref]

    def revoke(self, ref: str) -> None:
        """End all holds of a ref."""
        for revoked in self._holds.pop(ref, set()):
            revoked.set()
