"""Vector indices of sessions: in memory only, so that what is deleted is in no other file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from usearch.index import Index

Key = tuple[str, str, str]
KEPT = 64  # indices; others are made again from the vectors in the file


class Recall:
    """The indices of the sessions used last, by (tenant, session, embedder). For one thread."""

    def __init__(self) -> None:
        """Start empty."""
        self._indices: OrderedDict[Key, Index] = OrderedDict()

    def numbers(self, key: Key) -> set[int] | None:
        """Return which turns an index has; None when there is none."""
        index = self._indices.get(key)
        return None if index is None else {int(number) for number in index.keys}

    def fill(self, key: Key, vectors: Iterable[tuple[int, bytes]]) -> set[int]:
        """Make an index of float32 vectors by number; return the numbers."""
        self._indices.pop(key, None)
        found = dict(vectors)
        if found:
            self.add(key, found)
        return set(found)

    def add(self, key: Key, vectors: Mapping[int, bytes]) -> None:
        """Add vectors; those of other lengths than the rest are of another model: start anew."""
        import numpy as np  # this and the next take long to import, and few need them
        from usearch.index import Index

        rows = np.stack([np.frombuffer(vector, np.float32) for vector in vectors.values()])
        numbers = np.fromiter(vectors, np.uint64, len(vectors))
        index = self._indices.get(key)
        if index is None or index.ndim != rows.shape[1]:
            index = self._indices[key] = Index(ndim=rows.shape[1], metric="cos", dtype="f32")
        index.remove(numbers)
        index.add(numbers, rows)
        self._indices.move_to_end(key)
        while len(self._indices) > KEPT:
            self._indices.popitem(last=False)

    def search(self, key: Key, query: bytes, count: int) -> dict[int, float]:
        """Return the cosines of the nearest vectors, by number."""
        import numpy as np

        index, vector = self._indices.get(key), np.frombuffer(query, np.float32)
        if index is None or not len(index) or index.ndim != len(vector):
            return {}
        found = index.search(vector, count)
        return {int(n): 1.0 - float(d) for n, d in zip(found.keys, found.distances, strict=True)}

    def forget(self, session: tuple[str, str]) -> None:
        """Drop the indices of (tenant, session)."""
        for key in [key for key in self._indices if key[:2] == session]:
            del self._indices[key]
