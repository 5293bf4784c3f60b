"""Turns tokens into text as they come: whole characters, and nothing that may still be cut off."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from llmos.servers.execution.engine.torch.tokenizer import TextTokenizer


class TextStream:
    """The text of one generation. A function of the tokens alone: replaying them restores it."""

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[str]) -> None:
        """Start empty; `stops` are texts that end the generation, not empty."""
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._longest = max((len(stop) for stop in stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text that became certain; sets `stopped` when a stop text came.

        What follows a stop text, and the stop text itself, is dropped.
        """
        self._held += self._decoder.decode(self._tokenizer.bytes_of(token))
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            text, self._held, self.stopped = self._held[: min(found)], "", True
            return text
        keep = self._undecided()
        text, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return text

    def flush(self) -> str:
        """Return what was held back, now that nothing follows; half a character is dropped."""
        text, self._held = self._held, ""
        return text

    def _undecided(self) -> int:
        """Return how many last characters might be the beginning of a stop text."""
        for count in range(min(len(self._held), self._longest - 1), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stops):
                return count
        return 0
