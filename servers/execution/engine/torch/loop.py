"""The compute thread: continuous batching. Sequences join and leave between steps.

A step takes one token of every sequence that is decoding and fills up with pieces of the prompts
that are not read yet; all of it goes through the model's matrices in one product each.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

import torch

from llmos.lib.errors import Internal, LLMOSError, Unavailable
from llmos.servers.execution.engine.base import Piece
from llmos.servers.execution.engine.torch.delivery import Outlet, deliver
from llmos.servers.execution.engine.torch.kv import KVCache, Span
from llmos.servers.execution.engine.torch.model import Llama
from llmos.servers.execution.engine.torch.sampling import choose
from llmos.servers.execution.engine.torch.sequence import Sequence

log = logging.getLogger(__name__)

MAX_RUNNING = 64  # sequences in a step; more wait in order of arrival
PREFILL = 256  # prompt tokens in a step when nobody waits for a next token
PREFILL_BESIDE = 64  # and when somebody does: bounds the gap between two tokens


class Job:
    """A sequence with its reader."""

    def __init__(self, sequence: Sequence, outlet: Outlet) -> None:
        """Pair them; `cancelled` is set from outside."""
        self.sequence, self.outlet, self.cancelled = sequence, outlet, False


class StepLoop:
    """Runs jobs on a thread of its own."""

    def __init__(self, model: Llama, cache: KVCache, threads: int, name: str) -> None:
        """Start the thread; it sleeps until there is a job."""
        self._model, self._cache, self._threads = model, cache, threads
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Unavailable CLOSING after `close`."""
        with self._changed:
            if self._closing:
                raise _closed()
            self._waiting.append(job)
            self._changed.notify()

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
            while (ready := self._next()) is not None:
                try:
                    self._step(ready)
                except Exception as error:
                    # The outermost loop: whatever broke this step (memory, a kernel of torch)
                    # must not hang its readers or end the others' service.
                    log.exception("a step of %d sequences failed", len(ready))
                    self._fail(ready, Internal("STEP_FAILED", f"A compute step failed: {error}."))
        self._fail([*self._running, *self._waiting], _closed())

    def _next(self) -> list[Job] | None:
        """Wait for work; return the jobs of the next step, or None when closing."""
        with self._changed:
            while not self._closing:
                self._sweep()
                ready = [job for job in self._running if not job.outlet.full]
                if ready:
                    return ready
                self._changed.wait()
        return None

    def _sweep(self) -> None:
        """Drop cancelled jobs and admit waiting ones, in order, while there is room."""
        for job in [job for job in self._running if job.cancelled]:
            self._leave(job)
        self._waiting = deque(job for job in self._waiting if not job.cancelled)
        while self._waiting and len(self._running) < MAX_RUNNING:
            plan = self._waiting[0].sequence.plan
            seat = self._cache.reserve(len(plan.prompt) + plan.max_tokens)
            if seat is None:
                return
            job = self._waiting.popleft()
            job.sequence.seat = seat
            self._running.append(job)

    def _step(self, ready: list[Job]) -> None:
        def left(job: Job) -> int:
            return len(job.sequence.tokens) - job.sequence.fed

        decoding = sorted((j for j in ready if left(j) == 1), key=self._order)
        budget = PREFILL_BESIDE if decoding else PREFILL
        tokens: list[int] = []
        spans: list[Span] = []
        wanted: list[int] = []
        speaking: list[Job] = []
        for job in [*decoding, *(j for j in ready if left(j) > 1)]:
            sequence, count = job.sequence, left(job)
            if count > 1:
                count = min(count, budget)
                budget -= count
            if count == 0 or sequence.seat is None:
                continue
            spans.append(Span(sequence.seat, sequence.fed, count))
            tokens += sequence.tokens[sequence.fed : sequence.fed + count]
            sequence.fed += count
            if left(job) == 0:
                wanted.append(len(tokens) - 1)
                speaking.append(job)
        logits = self._model.forward(tokens, spans, wanted)
        self._speak(speaking, logits)

    def _speak(self, jobs: list[Job], logits: torch.Tensor) -> None:
        sequences = [job.sequence for job in jobs]
        chosen = choose(
            logits, [s.plan.sampler for s in sequences], [len(s.tokens) for s in sequences]
        )
        items: list[tuple[Outlet, Piece | LLMOSError]] = []
        for job, token in zip(jobs, chosen, strict=True):
            if token is None:
                items.append((job.outlet, _not_finite()))
                self._leave(job)
                continue
            items.append((job.outlet, job.sequence.accept(token)))
            if job.sequence.finish:
                self._leave(job)
        self._deliver(jobs, items)

    def _deliver(self, jobs: list[Job], items: list[tuple[Outlet, Piece | LLMOSError]]) -> None:
        lost = set(map(id, deliver(items)))
        for job in jobs:
            job.cancelled = job.cancelled or id(job.outlet) in lost

    def _order(self, job: Job) -> tuple[int, int]:
        assert job.sequence.seat is not None
        return self._cache.order(job.sequence.seat)

    def _leave(self, job: Job) -> None:
        self._running.remove(job)
        if job.sequence.seat is not None:
            self._cache.release(job.sequence.seat)
            job.sequence.seat = None

    def _fail(self, jobs: list[Job], error: LLMOSError) -> None:
        for job in jobs:
            if job in self._running:
                self._leave(job)
        deliver([(job.outlet, error) for job in jobs])


def _closed() -> Unavailable:
    return Unavailable("CLOSING", "The model is being unloaded; try again to have it loaded.")


def _not_finite() -> Internal:
    return Internal("NOT_FINITE", "The model computed a number that is not finite for this input.")
