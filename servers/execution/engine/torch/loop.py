"""The compute thread: continuous batching. Sequences join and leave between steps.

A step takes one token of every sequence that is decoding (and the tokens guessed to follow it) and
fills up with pieces of the prompts that are not read yet; all of it goes through the model's
matrices in one product each.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time

import torch
from torch import Tensor

from llmos.lib.errors import Internal, LLMOSError, Unavailable
from llmos.servers.execution import heap
from llmos.servers.execution.engine.base import Piece
from llmos.servers.execution.engine.torch.delivery import Outlet, deliver
from llmos.servers.execution.engine.torch.drafting import Drafter
from llmos.servers.execution.engine.torch.kv import KVCache, Span
from llmos.servers.execution.engine.torch.model import Between, Model
from llmos.servers.execution.engine.torch.pooling import Pooled
from llmos.servers.execution.engine.torch.sampling import Choice, Row, choose
from llmos.servers.execution.engine.torch.schedule import PREFILL_BESIDE, Chunk, Job, Scheduler
from llmos.servers.execution.engine.torch.scoring import score
from llmos.servers.execution.engine.torch.sequence import Sequence
from llmos.servers.execution.engine.torch.sharing import Sharing

_IDLE_S = 1.0  # without work, after which memory that steps need is not kept for the next

log = logging.getLogger(__name__)


class StepLoop:
    """Runs jobs on a thread of its own."""

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        threads: int,
        name: str,
        sharing: Sharing | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """Start the thread; it sleeps until there is a job."""
        self._sharing, self._drafter = sharing, drafter
        self._model, self._cache, self._threads = model, cache, threads
        self._changed = threading.Condition()
        apart = model.geometry.device.type == "cpu"
        self._jobs = Scheduler(cache.pages, apart=apart)
        self._between = self._interrupted if apart else None
        self._interruptions = 0
        self._jobs.drafts = drafter is not None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Unavailable CLOSING after `close`."""
        with self._changed:
            if self._closing:
                raise _closed()
            self._jobs.add(job)
            self._changed.notify()
            if job.left <= PREFILL_BESIDE:
                self._model.pause.value = 1

    def cancel(self, job: Job) -> None:
        """Drop a job before the next step; nothing more is delivered to it that matters."""
        job.cancelled = True
        self.wake()

    def wake(self) -> None:
        """Look at the jobs again: a reader has caught up, or is gone."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Stop after the step in progress; open jobs fail with Unavailable CLOSING."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while (chunks := self._next()) is not None:
                self._try(chunks, self._between)
        self._fail([*self._jobs.running, *self._jobs.waiting], _closed())

    def _try(
        self, chunks: list[Chunk], between: Between | None = None, *, guess: bool = True
    ) -> None:
        try:
            if guess:
                self._draft(chunks)
            self._step(chunks, between)
        except Exception as error:
            # The outermost loop: whatever broke this step (memory, a kernel of torch)
            # must not hang its readers or end the others' service.
            log.exception("a step of %d sequences failed", len(chunks))
            broken = Internal("STEP_FAILED", f"A compute step failed: {error}.")
            self._fail([chunk.job for chunk in chunks], broken)

    def _interrupted(self) -> None:
        """Read short prompts that have come during the step under way, before its next layer.

        Its rows do not depend on them, and their first token need not wait for its end.
        """
        self._model.pause.value = 0
        with self._changed:
            chunks = [] if self._closing else self._jobs.interrupt()
        if chunks:
            self._interruptions += 1
            # The draft model reads them later: nobody waits for its guesses yet.
            self._try(chunks, guess=False)

    def _next(self) -> list[Chunk] | None:
        """Wait for work; return the next step, or None when closing."""
        kept = True  # the memory of the last step
        with self._changed:
            while not self._closing:
                self._model.pause.value = 0  # all who have come are looked at here
                self._jobs.sweep()
                ready = [job for job in self._jobs.running if not job.outlet.full]
                if chunks := self._jobs.plan(ready):
                    return chunks
                # Whom the plan sent back may be admitted at once, or there is nothing to do.
                if not ready and not self._changed.wait(_IDLE_S if kept else None):
                    heap.give_back()  # also what was freed while loading, and in other threads
                    kept = False
        return None

    def _draft(self, chunks: list[Chunk]) -> None:
        """Have the draft model guess, if there is one; without it all goes on as well."""
        if self._drafter is None:
            return
        try:
            self._drafter.guess(chunks)
        except RuntimeError:  # torch's, of memory or a kernel
            log.exception("the draft model failed; going on without it")
            self._drafter, self._jobs.drafts = None, False
            for chunk in chunks:
                chunk.draft = ()

    def _step(self, chunks: list[Chunk], between: Between | None) -> None:
        tokens: list[int] = []
        spans: list[Span] = []
        wanted: list[int] = []
        speaking: list[Chunk] = []
        rows: list[Row] = []
        scored: list[tuple[Sequence, range]] = []
        scores: list[int] = []
        pooled: list[tuple[Chunk, Pooled, range]] = []
        shown: list[int] = []
        for chunk in chunks:
            sequence, job = chunk.job.sequence, chunk.job
            end = sequence.fed + chunk.count
            if isinstance(sequence, Pooled):
                needed, ask = sequence.shown(end), len(tokens) - sequence.fed
                pooled.append((chunk, sequence, needed))
                shown += [ask + position for position in needed]
            if positions := sequence.unscored(end):
                scored.append((sequence, positions))
                ask = len(tokens) - sequence.fed
                scores += [ask + position for position in positions]
            spans.append(Span(job.table, sequence.fed, chunk.count + len(chunk.draft), job.adapter))
            tokens += sequence.tokens[sequence.fed : end]
            tokens += chunk.draft
            if end == len(sequence.tokens) and not isinstance(sequence, Pooled):
                wanted += range(len(tokens) - len(chunk.draft) - 1, len(tokens))
                rows += [sequence.row(chunk.draft[:i]) for i in range(len(chunk.draft) + 1)]
                speaking.append(chunk)
        writes, self._jobs.to_write = self._jobs.to_write, []
        for block, data in writes:
            self._cache.copy_in(block, data)
        begun, interruptions = time.monotonic(), self._interruptions
        asked = [*wanted, *scores]
        logits, states = self._model.step(self._cache, tokens, spans, asked, shown, between)
        score(logits[len(wanted) :], scored)
        for chunk in chunks:
            chunk.job.sequence.fed += chunk.count
            chunk.job.register(self._cache.pages)  # before it may end and give its blocks back
        if self._sharing is not None and self._interruptions == interruptions:
            self._sharing.measured(len(tokens), time.monotonic() - begun)
        self._pool(pooled, states)
        self._speak(speaking, choose(logits[: len(wanted)], rows))

    def _pool(self, pooled: list[tuple[Chunk, Pooled, range]], states: Tensor) -> None:
        items: list[tuple[Outlet, Piece | LLMOSError]] = []
        at = 0
        for chunk, sequence, needed in pooled:
            mine = states[at : at + len(needed)]
            at += len(needed)
            if not sequence.take(mine, sequence.fed):
                continue
            if broken := sequence.vector is None:
                self._cache.scrub(chunk.job.table)
            items.append((chunk.job.outlet, _not_finite() if broken else sequence.closing()))
            self._jobs.drop(chunk.job, forget=broken)
        self._deliver([chunk.job for chunk, _, _ in pooled], items)

    def _speak(self, chunks: list[Chunk], choices: list[Choice | None]) -> None:
        items: list[tuple[Outlet, Piece | LLMOSError]] = []
        spoken: list[Job] = []
        at = 0
        for chunk in chunks:
            job, sequence = chunk.job, chunk.job.sequence
            mine = choices[at : at + len(chunk.draft) + 1]
            at += len(mine)
            # A guess stands as long as it is what is chosen anyway: the tokens are those of a
            # run without guesses, and the choice after the last right guess comes for free.
            if chunk.draft:
                pairs = zip(chunk.draft, mine, strict=False)
                right = itertools.takewhile(lambda p: p[1] and p[0] == p[1].token, pairs)
                sequence.judged(len(chunk.draft), sum(1 for _ in right))
            for i, choice in enumerate(mine):
                if choice is None:
                    items.append((job.outlet, _not_finite()))
                    self._cache.scrub(job.table)
                    self._jobs.drop(job, forget=True)
                    break
                items.append((job.outlet, sequence.accept(choice)))
                if sequence.finish:
                    break
                if i == len(chunk.draft) or choice.token != chunk.draft[i]:
                    break
                sequence.fed += 1
            if job in self._jobs.running:
                spoken.append(job)
        self._deliver([chunk.job for chunk in chunks], items)
        # Nobody's token waits for the copying of blocks.
        if self._sharing is not None:
            self._sharing.offer_some(spoken)
        for job in spoken:
            if job.sequence.finish:
                self._jobs.drop(job)

    def _deliver(self, jobs: list[Job], items: list[tuple[Outlet, Piece | LLMOSError]]) -> None:
        lost = set(map(id, deliver(items)))
        for job in jobs:
            job.cancelled = job.cancelled or id(job.outlet) in lost

    def _fail(self, jobs: list[Job], error: LLMOSError) -> None:
        for job in jobs:
            if job in self._jobs.running:
                self._jobs.drop(job, forget=True)
        deliver([(job.outlet, error) for job in jobs])


def _closed() -> Unavailable:
    return Unavailable("CLOSING", "The model is being unloaded; try again to have it loaded.")


def _not_finite() -> Internal:
    return Internal("NOT_FINITE", "The model computed a number that is not finite for this input.")
