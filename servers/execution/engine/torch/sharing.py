"""Prefixes beyond this worker: blocks taken from the store of prefixes, and given to it.

Blocks that were found are written to the cache before the next step; those that were computed are
offered several at a time, and when a prompt is read or a text ends. Equal keys mean equal tokens,
and a layout says all else that the numbers depend on, so nobody can tell where a block came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llmos.servers.execution.engine.prefix import Prefixes
from llmos.servers.execution.engine.torch.kv import Geometry, KVCache
from llmos.servers.execution.engine.torch.native.build import library
from llmos.servers.execution.engine.torch.pages import BLOCK
from llmos.servers.execution.engine.torch.schedule import Job

_FORMAT = 1  # to be raised when blocks come to be arranged or computed otherwise
WORTH = 3  # blocks; fewer are read sooner than fetched
_AT_ONCE = 16  # blocks offered together: they stay and go together, too


@dataclass
class Found:
    """Blocks from the store for positions from block `first` of a job on."""

    first: int
    blocks: Sequence[memoryview]

    def at(self, index: int) -> memoryview | None:
        """Return the block that is number `index` of the text, if it is here."""
        at = index - self.first
        return self.blocks[at] if 0 <= at < len(self.blocks) else None


class Sharing:
    """One model's dealings with the store; nothing happens until `prefixes` is set."""

    def __init__(self, cache: KVCache, precision: str, threads: int) -> None:
        """Describe the blocks of `cache`. threads: sums in float32 depend on how many there are."""
        self._cache = cache
        self._token_s = 0.0
        self.prefixes: Prefixes | None = None
        self.layout = _layout(cache.geometry, precision, threads)

    async def find(self, job: Job) -> None:
        """Give a job what the store has and the cache lacks; on the event loop, before it waits."""
        if self.prefixes is None or job.sequence.scores is not None:
            return
        keys = job.keys((len(job.sequence.tokens) - 1) // BLOCK)
        held = self._cache.pages.held(keys)
        if len(keys) - held < WORTH:
            return
        blocks = await self.prefixes.find(job.tenant, keys, held)
        if blocks:
            job.found = Found(held, blocks)

    def measured(self, rows: int, seconds: float) -> None:
        """Learn what a token takes to be read: what blocks are worth."""
        if rows >= BLOCK:
            self._token_s = seconds / rows

    def offer_some(self, jobs: Sequence[Job]) -> None:
        """Offer blocks of texts that end now, and of one that goes on: a step copies few.

        Of jobs that have just chosen a token, so that what they have read is known to be finite.
        In the compute thread, while the blocks are held.
        """
        some = False
        for job in jobs:
            if ended := bool(job.sequence.finish):
                self.offer(job, ended=ended)
            elif not some:
                some = self.offer(job)

    def offer(self, job: Job, *, ended: bool = False) -> bool:
        """Give the store a job's full blocks that it has not seen, when they are enough."""
        prefixes, full = self.prefixes, job.sequence.fed // BLOCK
        if prefixes is None or full < WORTH or full == job.offered or not prefixes.wanted:
            return False
        read = len(job.sequence.plan.prompt) // BLOCK
        if not ended and full < job.offered + _AT_ONCE and job.offered >= read:
            return False
        # A long prompt goes in several steps: nobody is to wait for the copying.
        full = min(full, job.offered + _AT_ONCE * (4 if ended else 1))
        keys, blocks = job.keys(full)[job.offered :], job.table[job.offered : full]

        def fill(out: memoryview) -> None:
            self._cache.copy_out(blocks, out)

        cost_s = len(keys) * BLOCK * self._token_s
        prefixes.offer(job.tenant, keys, job.offered, cost_s, fill)
        job.offered = full
        return True


def _layout(g: Geometry, precision: str, threads: int) -> str:
    shape = f"{g.layers}x{g.kv_heads}x{g.head_dim}x{BLOCK} {str(g.dtype).removeprefix('torch.')}"
    kernels = library() if g.device.type == "cpu" else None
    if kernels is not None:
        own = Path(kernels._name).stem
    elif g.device.type == "cpu":
        own = hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:16]
        own = f"{torch.backends.cpu.get_cpu_capability()} {own}"
    else:
        own = torch.cuda.get_device_name(g.device)
    return f"torch/{_FORMAT} {precision} {shape} threads {threads} {torch.__version__} {own}"
