"""Guesses what comes next: what followed the same few tokens before (prompt lookup). No torch."""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST, _SHORTEST = 4, 2  # tokens that have to be the same


class Lookup:
    """An index of the runs of a growing sequence. A function of its tokens alone."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._after: dict[tuple[int, ...], int] = {}
        self._known = 0

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return up to `most` tokens that followed the latest earlier run like the present end."""
        for end in range(max(self._known, _SHORTEST), len(tokens)):
            for size in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._after[tuple(tokens[end - size : end])] = end
        self._known = len(tokens)
        for size in range(min(_LONGEST, len(tokens)), _SHORTEST - 1, -1):
            at = self._after.get(tuple(tokens[-size:]))
            if at is not None:
                return list(tokens[at : at + most])
        return []
