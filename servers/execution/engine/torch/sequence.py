"""One request while it runs: its tokens, its text, and how it ends. No torch."""

from __future__ import annotations

import time
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, replace

from llmos.servers.execution.engine.base import Piece, TokenLogprob
from llmos.servers.execution.engine.torch.guide import Guide
from llmos.servers.execution.engine.torch.lookup import Lookup
from llmos.servers.execution.engine.torch.sampling import Choice, Row, Sampler
from llmos.servers.execution.engine.torch.text import TextStream


@dataclass(frozen=True)
class Plan:
    """A checked request. prompt: ids, not empty; max_tokens: at least 1, within the context."""

    prompt: Tokens[int]
    max_tokens: int
    sampler: Sampler
    resume: Tokens[int] = ()
    speculate: int = 0  # tokens to guess ahead
    rank: int = 3  # the call's class
    tenant: str = ""
    scored: bool = False  # the prompt's tokens are asked about, too


class Sequence:
    """Grows by `accept`, one token a step; owned by the step loop once submitted."""

    def __init__(
        self, plan: Plan, text: TextStream, ends: frozenset[int], guide: Guide | None = None
    ) -> None:
        """Replay the tokens of `plan.resume`: their text is not said again.

        guide: says which tokens may follow; it is replayed, too.
        """
        self.plan, self._text, self._ends = plan, text, ends
        self.tokens = [*plan.prompt]
        self.fed = 0  # how many of them are in the KV cache
        self.cached = 0  # how many of them were found there, at first
        self._guide, self._lookup = guide, Lookup()
        # A draft model may guess; under a guide every choice waits for its mask.
        self.drafted = plan.speculate > 0 and guide is None
        self._hope = plan.speculate
        self._guessed = self._accepted = 0
        self.finish = ""
        # Log probabilities of the prompt's tokens as far as it is read; None: nobody asked, or an
        # earlier worker has told them.
        self.scores: list[TokenLogprob] | None = None
        if plan.scored and not plan.resume and plan.sampler.logprobs is not None:
            self.scores = [TokenLogprob(plan.prompt[0], 0.0)]
        self._begun = False
        self._born = time.monotonic()
        self._first = 0.0
        for token in plan.resume:
            if not self.finish:
                self._append(token)

    @property
    def made(self) -> int:
        """Return how many tokens were generated, resumed ones included."""
        return len(self.tokens) - len(self.plan.prompt)

    @property
    def whole(self) -> bool:
        """Return whether all of its tokens have to be read, also where their keys are known."""
        return self.scores is not None

    def begin(self, cached: int) -> None:
        """Start reading after `cached` tokens, whose keys and values were found."""
        self.fed = cached
        if not self._begun:
            self._begun, self.cached = True, cached

    def unscored(self, end: int) -> range:
        """Return the positions up to `end` whose successors in the prompt are to be scored."""
        if self.scores is None:
            return range(0)
        return range(len(self.scores) - 1, min(end, len(self.plan.prompt) - 1))

    def guess(self) -> list[int]:
        """Return tokens that may come next; computed together with the last one, they are free."""
        # The last token of all needs no successor; under a guide every choice waits for its mask.
        most = min(self.plan.speculate, self.plan.max_tokens - self.made - 1)
        if most < 1 or self._guide is not None:
            return []
        return self._lookup.guess(self.tokens, most)

    @property
    def ahead(self) -> int:
        """Return how many tokens a draft model is to guess now: fewer after it was wrong."""
        return max(0, min(self._hope, self.plan.max_tokens - self.made - 1)) if self.drafted else 0

    def judged(self, guessed: int, accepted: int) -> None:
        """Count guesses of a step, and how many of them were right."""
        self._guessed += guessed
        self._accepted += accepted
        right = guessed == accepted
        self._hope = min(self.plan.speculate, 2 * self._hope if right else accepted + 1)

    def row(self, draft: Tokens[int]) -> Row:
        """Return the choice to make after all tokens and `draft`."""
        allowed = None if self._guide is None else self._guide.allowed()
        tokens = [*self.tokens, *draft] if draft else self.tokens
        return Row(self.plan.sampler, tokens, len(self.plan.prompt), allowed)

    def accept(self, choice: Choice) -> Piece:
        """Add the next token and return what it brings; sets `finish` when it is the last."""
        self._first = self._first or time.monotonic()
        text = self._append(choice.token)
        piece = self._piece(text, [choice.token])
        if self.finish:
            piece = self.closing(text, [choice.token])
        if choice.logprob is not None:
            piece = replace(piece, logprobs=[choice.logprob])
        if self.scores is not None:
            piece, self.scores = replace(piece, prompt_logprobs=self.scores), None
        return piece

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
            cached_tokens=min(self.cached, len(self.plan.prompt)),
            guessed_tokens=self._guessed,
            accepted_tokens=self._accepted,
        )

    def _piece(self, text: str, tokens: Tokens[int]) -> Piece:
        return Piece(text=text, tokens=tokens, prompt_tokens=len(self.plan.prompt))

    def _append(self, token: int) -> str:
        self.tokens.append(token)
        if self._guide is not None:
            self._guide.accept(token)
        if token in self._ends:
            self.finish = "stop"
            return self._text.flush()
        text = self._text.push(token)
        if self._text.stopped:
            self.finish = "stop"
        elif self._guide is not None and self._guide.finished:
            self.finish = "stop"
            text += self._text.flush()
        elif self.made == self.plan.max_tokens:
            self.finish = "length"
            text += self._text.flush()
        return text
