"""The rate of streams while all of them run: what is compared with batches that begin together."""

from __future__ import annotations

from collections.abc import Sequence


def rate_together(streams: Sequence[Sequence[float]]) -> float:
    """Return tokens a second of all streams, each the times of its tokens.

    From when the last of them has its first token until the first of them ends.
    """
    begun, end = max(times[0] for times in streams), min(times[-1] for times in streams)
    tokens = sum(begun < at <= end for times in streams for at in times)
    return tokens / (end - begun)
