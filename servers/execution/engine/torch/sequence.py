"""One request while it runs: its tokens, its text, and how it ends. No torch."""

from __future__ import annotations

import time
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from llmos.servers.execution.engine.base import Piece
from llmos.servers.execution.engine.torch.kv import Seat
from llmos.servers.execution.engine.torch.sampling import Sampler
from llmos.servers.execution.engine.torch.text import TextStream


@dataclass(frozen=True)
class Plan:
    """A checked request. prompt: ids, not empty; max_tokens: at least 1, within the context."""

    prompt: Tokens[int]
    max_tokens: int
    sampler: Sampler
    resume: Tokens[int] = ()


class Sequence:
    """Grows by `accept`, one token a step; owned by the step loop once submitted."""

    def __init__(self, plan: Plan, text: TextStream, ends: frozenset[int]) -> None:
        """Replay the tokens of `plan.resume`: their text is not said again."""
        self.plan, self._text, self._ends = plan, text, ends
        self.tokens = [*plan.prompt]
        self.fed = 0  # how many of them are in the KV cache
        self.seat: Seat | None = None
        self.finish = ""
        self._born = time.monotonic()
        self._first = 0.0
        for token in plan.resume:
            if not self.finish:
                self._append(token)

    @property
    def made(self) -> int:
        """Return how many tokens were generated, resumed ones included."""
        return len(self.tokens) - len(self.plan.prompt)

    def accept(self, token: int) -> Piece:
        """Add the next token and return what it brings; sets `finish` when it is the last."""
        self._first = self._first or time.monotonic()
        text = self._append(token)
        return self.closing(text, [token]) if self.finish else self._piece(text, [token])

    def closing(self, text: str = "", tokens: Tokens[int] = ()) -> Piece:
        """Return the last piece."""
        now = time.monotonic()
        return Piece(
            text=text,
            tokens=tokens,
            finish=self.finish,
            prompt_tokens=len(self.plan.prompt),
            completion_tokens=self.made,
            first_token_s=(self._first or now) - self._born,
            decode_s=now - (self._first or now),
        )

    def _piece(self, text: str, tokens: Tokens[int]) -> Piece:
        return Piece(text=text, tokens=tokens, prompt_tokens=len(self.plan.prompt))

    def _append(self, token: int) -> str:
        self.tokens.append(token)
        if token in self._ends:
            self.finish = "stop"
            return self._text.flush()
        text = self._text.push(token)
        if self._text.stopped:
            self.finish = "stop"
        elif self.made == self.plan.max_tokens:
            self.finish = "length"
            text += self._text.flush()
        return text
