"""Guesses by a second, smaller model, whose cache of keys and values goes along with the first's.

Speculative decoding (Leviathan et al. 2023; Chen et al. 2023), but for how a guess is judged: here
it stands if it is what would have been chosen anyway, as the noise is a function of the position.
The draft model therefore chooses with the same noise, so that it is often right when sampling, too.

Both caches have the same blocks: what block 7 of a text is in one, it is in the other. So a shared
prefix is shared here as well, a preempted text gives up both, and a wrong guess is undone by
writing over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmos.servers.execution.engine.torch.kv import KVCache, Span
from llmos.servers.execution.engine.torch.model import Model
from llmos.servers.execution.engine.torch.pages import BLOCK, Pages
from llmos.servers.execution.engine.torch.sampling import Row, choose
from llmos.servers.execution.engine.torch.schedule import Chunk, Job

_READ = 256  # tokens of texts that it reads in a step: those of one step of the large model


@dataclass
class _Turn:
    """What is done for one job in a step. known: its tokens that the step may look at."""

    chunk: Chunk
    known: int
    start: int
    count: int

    @property
    def ready(self) -> bool:
        """Return whether it can guess: all is read, and there is somebody to check the guesses."""
        return bool(self.chunk.ahead) and self.start + self.count == self.known


class Drafter:
    """Fills in the drafts of chunks. Not thread-safe: the step loop owns it."""

    def __init__(self, model: Model, context: int, pages: Pages, vocab: int) -> None:
        """Go along with the cache of `pages`. context: of `model`; vocab: ids of the large one."""
        self.model = model
        self._context, self._pages, self._vocab = context, pages, vocab
        self._cache = KVCache(model.geometry, len(pages) * BLOCK)

    def guess(self, chunks: Sequence[Chunk]) -> None:
        """Read what is new in the texts that want guesses, and set the drafts of `chunks`."""
        turns = self._turns(chunks)
        if not turns:
            return
        speaking = [turn for turn in turns if turn.ready]
        tokens = [t for turn in turns for t in self._unread(turn)]
        spans = [Span(turn.chunk.job.table, turn.start, turn.count) for turn in turns]
        ends, at = [], 0
        for turn in turns:
            at += turn.count
            if turn.ready:
                ends.append(at - 1)
        drafts: list[list[int]] = [[] for _ in speaking]
        self._advance(tokens, spans, ends, speaking, drafts)
        for turn in turns:
            self._read(turn)
        while open_ := [i for i, turn in enumerate(speaking) if self._more(turn, drafts[i])]:
            some, theirs = [speaking[i] for i in open_], [drafts[i] for i in open_]
            spans = [
                Span(turn.chunk.job.table, turn.known + len(draft) - 1, 1)
                for turn, draft in zip(some, theirs, strict=True)
            ]
            last = [draft[-1] for draft in theirs]
            self._advance(last, spans, range(len(some)), some, theirs)
        for turn, draft in zip(speaking, drafts, strict=True):
            turn.chunk.draft = draft
            turn.chunk.job.guessed = draft[:-1]  # the last is not read

    def _turns(self, chunks: Sequence[Chunk]) -> list[_Turn]:
        turns, budget = [], _READ
        for chunk in chunks:
            job = chunk.job
            known = job.sequence.fed + chunk.count
            if not job.sequence.drafted or known + chunk.ahead > self._context:
                continue
            start = self._start(job)
            count = min(known - start, budget)
            if count > 0:
                budget -= count
                turns.append(_Turn(chunk, known, start, count))
        return turns

    def _start(self, job: Job) -> int:
        """Return how many of a job's tokens are in the cache, right guesses included."""
        at, tokens = job.drafted, job.sequence.tokens
        for guess in job.guessed:
            if at == len(tokens) or tokens[at] != guess:
                break
            at += 1
        while at % BLOCK == 0 and at < job.sequence.fed:
            if job.table[at // BLOCK] not in self._pages.marked:
                break
            at += BLOCK
        job.drafted, job.guessed = at, []
        return at

    def _unread(self, turn: _Turn) -> list[int]:
        return turn.chunk.job.sequence.tokens[turn.start : turn.start + turn.count]

    def _read(self, turn: _Turn) -> None:
        """Note what is read now, for this job and for all that share its full blocks."""
        job = turn.chunk.job
        job.drafted = turn.start + turn.count
        full = range(turn.start // BLOCK, job.drafted // BLOCK)
        self._pages.marked.update(job.table[i] for i in full)

    @staticmethod
    def _more(turn: _Turn, draft: list[int]) -> bool:
        return turn.chunk.job.sequence.drafted and 0 < len(draft) < turn.chunk.ahead

    def _advance(
        self,
        tokens: Sequence[int],
        spans: Sequence[Span],
        ends: Sequence[int],
        turns: Sequence[_Turn],
        drafts: Sequence[list[int]],
    ) -> None:
        """Compute a step and add a guess to each of `drafts`, from the rows `ends`."""
        logits = self.model.forward(self._cache, tokens, spans, ends)[:, : self._vocab]
        rows = [_row(turn, draft) for turn, draft in zip(turns, drafts, strict=True)]
        choices = choose(logits, rows)
        for turn, draft, choice in zip(turns, drafts, choices, strict=True):
            if choice is not None:
                draft.append(choice.token)
                continue
            job = turn.chunk.job  # its numbers are not finite: it goes on without guesses
            job.sequence.drafted = False
            self._pages.marked.difference_update(job.table)
            self._cache.scrub(job.table)


def _row(turn: _Turn, draft: Sequence[int]) -> Row:
    row = turn.chunk.job.sequence.row(draft)
    return replace(row, sampler=replace(row.sampler, logprobs=None))
