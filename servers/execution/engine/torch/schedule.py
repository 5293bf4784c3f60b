"""Who computes in the next step: admission, classes, growth and preemption. No torch.

Jobs are served by class, then in order of arrival. A job's blocks are taken as it grows; when none
are left, the last job of the lowest class gives up its blocks and starts anew later, where most
of them are usually still found (the same tokens give the same numbers, so nobody can tell).
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos.servers.execution.engine.base import BATCH, INTERACTIVE
from llmos.servers.execution.engine.torch.delivery import Outlet
from llmos.servers.execution.engine.torch.pages import BLOCK, Pages, chain, root
from llmos.servers.execution.engine.torch.sequence import Sequence

if TYPE_CHECKING:
    from llmos.servers.execution.engine.torch.adapter import Adapter
    from llmos.servers.execution.engine.torch.sharing import Found

MAX_RUNNING = 64  # sequences in a step; more wait
PREFILL = 256  # prompt tokens in a step when nobody waits for a next token
PREFILL_BESIDE = 64  # and when somebody does: bounds the gap between two tokens
_BETWEEN = 96  # and with short prompts that come during a step: three of 32 tokens, for example
_PATIENCE = 4  # steps in a row that BATCH sits out while INTERACTIVE prompts are read


class Job:
    """A sequence with its reader and its blocks."""

    def __init__(
        self,
        sequence: Sequence,
        outlet: Outlet,
        rank: int = 3,
        tenant: str = "",
        adapter: Adapter | None = None,
    ) -> None:
        """Pair them. rank: the call's class, lower first. tenant: whose prefixes it may share."""
        self.adapter = adapter
        self.sequence, self.outlet, self.rank = sequence, outlet, rank
        self.tenant = tenant
        self.cancelled = False  # set from outside
        self.number = 0  # order of arrival
        self.table: list[int] = []
        self.found: Found | None = None  # blocks from the store of prefixes
        self.offered = 0  # blocks of its text that the store was offered, or has
        self.drafted = 0  # tokens that the draft model has read
        self.guessed: Listing[int] = ()  # and guesses that it has read beyond them
        self._keys = [root(tenant, *([adapter.ref] if adapter is not None else []))]
        self._registered = 0

    @property
    def order(self) -> tuple[int, int]:
        """Return the sort key: who comes first."""
        return self.rank, self.number

    @property
    def left(self) -> int:
        """Return how many tokens are not read yet; 1: it is decoding."""
        return len(self.sequence.tokens) - self.sequence.fed

    def keys(self, blocks: int) -> list[bytes]:
        """Return the keys of the first `blocks` blocks of its tokens."""
        tokens = self.sequence.tokens
        while len(self._keys) <= blocks:
            at = (len(self._keys) - 1) * BLOCK
            self._keys.append(chain(self._keys[-1], tokens[at : at + BLOCK]))
        return self._keys[1 : blocks + 1]

    def register(self, pages: Pages) -> None:
        """Let others find the blocks that have become full."""
        full = self.sequence.fed // BLOCK
        if full > self._registered:
            keys = self.keys(full)
            for i in range(self._registered, full):
                pages.register(self.table[i], keys[i])
            self._registered = full

    def leave(self, pages: Pages, *, forget: bool = False) -> None:
        """Give all blocks back; what it has read is to be read again."""
        pages.release(self.table, forget=forget)
        self.table, self._registered, self.sequence.fed = [], 0, 0
        self.drafted, self.guessed = 0, ()


@dataclass
class Chunk:
    """What one job does in a step: `count` known tokens and then the guessed `draft`.

    ahead: so many tokens the draft model may guess; there is room for them.
    """

    job: Job
    count: int
    draft: Listing[int] = field(default=())
    ahead: int = 0


class Scheduler:
    """Owns the queues. Not thread-safe: the step loop holds its lock."""

    def __init__(self, pages: Pages, *, apart: bool = False) -> None:
        """Start empty. apart: where a step takes as long as its rows (CPUs), see `_goes_apart`."""
        self._pages, self._apart = pages, apart
        self.drafts = False  # a draft model guesses
        self._arrivals = 0
        self._sat_out = 0
        self._was_apart = False  # the last step
        self._beside = 0  # prompt tokens read since those who decode had a token
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.preemptions = 0
        self.to_write: list[tuple[int, memoryview]] = []  # into blocks, before the next step

    def add(self, job: Job) -> None:
        """Queue a new job."""
        self._arrivals += 1
        job.number = self._arrivals
        self.waiting.append(job)

    def drop(self, job: Job, *, forget: bool = False) -> None:
        """End a running job."""
        self.running.remove(job)
        job.leave(self._pages, forget=forget)

    def sweep(self) -> None:
        """Drop cancelled jobs and admit waiting ones while there is room."""
        for job in [job for job in self.running if job.cancelled]:
            self.drop(job)
        self.waiting = [job for job in self.waiting if not job.cancelled]
        while self.waiting:
            job = min(self.waiting, key=lambda j: j.order)
            if not self._admit(job):
                return
            self.waiting.remove(job)
            self.running.append(job)

    def interrupt(self) -> list[Chunk]:
        """Admit newcomers with short prompts in the middle of a step, to be read before it goes on.

        The first who wait, and nobody else's blocks are touched: the step is at work on them. Those
        who decode wait for `_BETWEEN` rows of prompts at most between two tokens, and a person
        whose prompt is read waits for no BATCH.
        """
        chunks: list[Chunk] = []
        person = any(job.rank <= INTERACTIVE and job.left > 1 for job in self.running)
        for job in sorted(self.waiting, key=lambda j: j.order):
            if person and job.rank >= BATCH:
                break
            if not self._apart or job.cancelled or job.left > PREFILL_BESIDE:
                break
            if job.left > _BETWEEN - self._beside:
                break
            if not self._admit(job, drive_out=False):
                break
            self.waiting.remove(job)
            self.running.append(job)
            self._beside += job.left
            chunks.append(Chunk(job, job.left))
        return chunks

    def _admit(self, job: Job, *, drive_out: bool = True) -> bool:
        if len(self.running) >= MAX_RUNNING and not (drive_out and self._preempt(job.rank)):
            return False
        tokens = len(job.sequence.tokens)
        # What is to be scored or pooled has to be read.
        known = 0 if job.sequence.whole else (tokens - 1) // BLOCK
        shared = self._pages.match(job.keys(known))
        needed = -(-tokens // BLOCK) - len(shared)
        # A block for everybody's growth: else the newcomer soon drives another out.
        while self._pages.free < needed + len(self.running):
            if not (drive_out and self._preempt(job.rank)):
                self._pages.release(shared)
                return False
        job.table = shared
        self._take_found(job, known)
        job.offered = max(job.offered, len(job.table))
        job.sequence.begin(len(job.table) * BLOCK)
        return self._grow(job, tokens)

    def _take_found(self, job: Job, known: int) -> None:
        """Take blocks for what the store had and the cache has not; there is room for them."""
        if job.found is None:
            return
        while len(job.table) < known and (data := job.found.at(len(job.table))) is not None:
            block = self._pages.take()
            assert block is not None
            # Whoever finds it from now on reads it after the writing: writes come in this order,
            # and before all that is computed.
            self.to_write.append((block, data))
            self._pages.register(block, job.keys(len(job.table) + 1)[-1])
            job.table.append(block)
        job.found = None

    def _preempt(self, rank: int) -> bool:
        """Send the last job of a lower class than `rank` back to wait."""
        victim = max(self.running, key=lambda j: j.order, default=None)
        if victim is None or victim.rank <= rank:
            return False
        self._send_back(victim)
        return True

    def _send_back(self, victim: Job) -> None:
        self.preemptions += 1
        self.drop(victim)
        self.waiting.append(victim)

    def _grow(self, job: Job, positions: int) -> bool:
        """Give it blocks for so many positions; False when it was sent back itself."""
        while len(job.table) * BLOCK < positions:
            block = self._pages.take()
            if block is not None:
                job.table.append(block)
                continue
            victim = max(self.running, key=lambda j: j.order)
            self._send_back(victim)
            if victim is job:
                return False
        return True

    def plan(self, ready: Listing[Job]) -> list[Chunk]:
        """Return the chunks of a step: those of `ready` that decode first, then prompts.

        One token (and its draft) of each that decodes, prompts within the budget: first class
        first, the shortest rest first, and a quarter kept for who has waited longest.
        """
        ready = sorted(ready, key=lambda j: j.order)
        decoding = [job for job in ready if job.left == 1]
        reading = [job for job in ready if job.left > 1]
        decoding, reading = self._without_batch(decoding, reading)
        budget = PREFILL_BESIDE if decoding else PREFILL
        if not self._was_apart:
            self._beside = 0
        self._was_apart = self._goes_apart(decoding, reading)
        chunks: list[Chunk] = []
        for job in [] if self._was_apart else decoding:
            if job not in self.running:
                continue  # sent back a moment ago
            draft = [] if self.drafts else job.sequence.guess()
            ahead = job.sequence.ahead if self.drafts else 0
            if self._grow(job, len(job.sequence.tokens) + max(len(draft), ahead)):
                chunks.append(Chunk(job, 1, draft, ahead))
        reading = [job for job in reading if job in self.running]
        if reading:
            oldest = min(reading, key=lambda j: j.order)
            counts = {id(oldest): min(oldest.left, budget // 4)}
            budget -= counts[id(oldest)]
            for job in sorted(reading, key=lambda j: (j.rank, j.left, j.number)):
                more = min(job.left - counts.get(id(job), 0), budget)
                budget -= more
                counts[id(job)] = counts.get(id(job), 0) + more
            chunks += [Chunk(job, counts[id(job)]) for job in reading if counts[id(job)]]
            self._beside += sum(counts.values()) if decoding else 0
        return [chunk for chunk in chunks if chunk.job in self.running]

    def _without_batch(
        self, decoding: list[Job], reading: list[Job]
    ) -> tuple[list[Job], list[Job]]:
        """Leave BATCH out while a person waits for a first token, but not for long."""
        if reading and reading[0].rank <= INTERACTIVE and self._sat_out < _PATIENCE:
            others = [[job for job in jobs if job.rank < BATCH] for jobs in (decoding, reading)]
            some = len(others[0]) + len(others[1]) < len(decoding) + len(reading)
            self._sat_out = self._sat_out + 1 if some else 0
            return others[0], others[1]
        self._sat_out = 0
        return decoding, reading

    def _goes_apart(self, decoding: list[Job], reading: list[Job]) -> bool:
        """Say whether prompts are read now and the next tokens computed in the step after.

        For a short rest of a prompt, and every other step at most. Together they take as long, but
        the newcomer's first token would come after both.
        """
        if not (self._apart and decoding and reading) or self._was_apart:
            return False
        return min(reading, key=lambda j: (j.rank, j.left)).left <= PREFILL_BESIDE
