"""Counts of calls by how long they took: four entries an octave, as PortInfo.latency says."""

from __future__ import annotations

from math import log2

_FIRST_S = 1e-4
_OCTAVE = 4
_LAST = 96  # 0.1 ms x 2^24 is half an hour; what takes longer is counted there


def count(counts: list[int], seconds: float) -> None:
    """Add one to the entry of a call that took so long; the list grows where it must."""
    index = 0
    if seconds >= _FIRST_S:
        index = min(_LAST, 1 + int(_OCTAVE * log2(seconds / _FIRST_S)))
    if index >= len(counts):
        counts.extend([0] * (index + 1 - len(counts)))
    counts[index] += 1
