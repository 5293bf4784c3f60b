"""The torch engine: loads a causal language model and serves it with continuous batching."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.servers.execution.engine.base import (
    Embeddings,
    Engine,
    EngineInfo,
    Generation,
    ModelSpec,
    Piece,
)
from llmos.servers.execution.engine.prefix import Prefixes
from llmos.servers.execution.engine.torch import sizing
from llmos.servers.execution.engine.torch.adapters import Adapters
from llmos.servers.execution.engine.torch.build import build
from llmos.servers.execution.engine.torch.chat import ChatTemplate
from llmos.servers.execution.engine.torch.config import main_file
from llmos.servers.execution.engine.torch.delivery import Outlet
from llmos.servers.execution.engine.torch.drafting import Drafter
from llmos.servers.execution.engine.torch.guide import Guides
from llmos.servers.execution.engine.torch.kv import KVCache
from llmos.servers.execution.engine.torch.loop import StepLoop
from llmos.servers.execution.engine.torch.model import Model
from llmos.servers.execution.engine.torch.options import NO_WISHES, Wishes, wishes
from llmos.servers.execution.engine.torch.pooling import Pooled
from llmos.servers.execution.engine.torch.reading import read
from llmos.servers.execution.engine.torch.request import constraint, is_short, make_plan
from llmos.servers.execution.engine.torch.schedule import Job
from llmos.servers.execution.engine.torch.sequence import Sequence as Running
from llmos.servers.execution.engine.torch.sharing import Sharing
from llmos.servers.execution.engine.torch.text import TextStream
from llmos.servers.execution.engine.torch.tokenizer import TextTokenizer
from llmos.servers.execution.engine.torch.weights import GgufWeights, SafetensorsWeights, Weights

log = logging.getLogger(__name__)


class TorchEngine(Engine):
    """A causal language model of the llama family.

    The same request gives the same tokens: greedy or by seed, resumed at any token or unbroken.
    On the CPU this holds bit by bit whatever else runs (see `Llama`); where the hardware's
    kernels depend on the number of rows (CUDA), a near-tie may fall otherwise in another batch.
    Results may differ between CPU models and numbers of threads.
    """

    def __init__(
        self,
        info: EngineInfo,
        model: Model,
        text: TextTokenizer,
        chat: ChatTemplate,
        threads: int,
        wished: Wishes = NO_WISHES,
        draft: Draft | None = None,
    ) -> None:
        """Start serving `model`; `load` builds all the parts. draft: what guesses for it."""
        self._pooling, self._speculate = wished.pooling or "mean", wished.speculate
        self._draft = draft
        self.info, self.tokenizer = info, text
        self._chat, self._vocab, self._model = chat, model.config.vocab, model
        self._guides = Guides(text, self._vocab)
        self._adapters = Adapters(model)
        cache = KVCache(model.geometry, sizing.kv_tokens(info.context_length))
        self._sharing, self.block_bytes = Sharing(cache, info.dtype, threads), cache.block_bytes
        drafter = None
        if draft is not None:
            drafter = Drafter(draft.model, draft.context, cache.pages, self._vocab)
        self._loop = StepLoop(model, cache, threads, "torch-steps", self._sharing, drafter)

    @property
    def layout(self) -> str:
        """See SharesPrefixes."""
        return self._sharing.layout

    def share(self, prefixes: Prefixes) -> None:
        """See SharesPrefixes."""
        self._sharing.prefixes = prefixes

    async def generate(self, request: Generation) -> AsyncIterator[Piece]:
        """Continue text; see Engine. Also raises InvalidArgument BAD_TOKENS for unknown ids."""
        if is_short(request):  # another thread would have to wait for Python's lock and for a CPU
            sequence = self._prepare(request)
        else:
            sequence = await asyncio.to_thread(self._prepare, request)
        if sequence.finish:
            yield sequence.closing()  # it had said its last token before it was resumed
            return
        outlet = Outlet(self._loop.wake)
        adapter = self._adapters.get(request.adapter) if request.adapter else None
        job = Job(sequence, outlet, sequence.plan.rank, sequence.plan.tenant, adapter)
        await self._sharing.find(job)
        self._loop.submit(job)
        try:
            while True:
                piece = await outlet.get()
                yield piece
                if piece.finish:
                    return
        finally:
            self._loop.cancel(job)

    def _prepare(self, request: Generation) -> Running:
        if not request.speculate:
            request = replace(request, speculate=self._speculate)
        plan = make_plan(request, self.tokenizer, self._chat, self.info.context_length, self._vocab)
        wanted = constraint(request)
        guide = None if wanted is None else self._guides.make(*wanted)
        return Running(plan, TextStream(self.tokenizer, request.stop), self.tokenizer.ends, guide)

    def adapted(self, ref: str) -> bool:
        """See Engine."""
        return ref in self._adapters

    async def adapt(self, ref: str, files: Mapping[str, Path]) -> None:
        """See Engine. Also raises FailedPrecondition BAD_ADAPTER."""
        await asyncio.to_thread(self._adapters.add, ref, files)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Turn texts into vectors: the mean of their tokens' last states, or the last token's.

        Texts beyond the context are cut. Also raises Internal STEP_FAILED, NOT_FINITE.
        """
        if not texts:
            raise InvalidArgument("EMPTY_INPUT", "There is no text to embed; give at least one.")
        ids = await asyncio.to_thread(lambda: [self.tokenizer.encode(text) for text in texts])
        for index, tokens in enumerate(ids):
            if not tokens:
                raise InvalidArgument("EMPTY_INPUT", f"Text {index} is empty; leave it out.")
        most = self.info.context_length
        read = [Pooled(tokens[:most], self.tokenizer, self._pooling) for tokens in ids]
        jobs = [Job(sequence, Outlet(self._loop.wake)) for sequence in read]
        try:
            for job in jobs:
                self._loop.submit(job)
            pieces = [await job.outlet.get() for job in jobs]
        finally:
            for job in jobs:
                self._loop.cancel(job)
        return Embeddings(
            np.stack([s.vector for s in read if s.vector is not None]),
            sum(piece.prompt_tokens for piece in pieces),
            [i for i, tokens in enumerate(ids) if len(tokens) > most],
        )

    async def infer(
        self, inputs: dict[str, npt.NDArray[np.generic]], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Raise FailedPrecondition WRONG_TASK."""
        raise self._wrong_task("run on tensors")

    def tokenize(self, text: str) -> tuple[list[int], list[str]]:
        """Return token ids and their texts; a part of a character reads as U+FFFD."""
        ids = self.tokenizer.encode(text)
        return ids, [self.spell(token) for token in ids]

    def spell(self, token: int) -> str:
        """Return a token's text, or its name where it adds none; half a character is U+FFFD."""
        text = self.tokenizer.bytes_of(token).decode("utf-8", "replace")
        return text or self.tokenizer.name(token)

    def work(self) -> float:
        """Return the layers computed: one step of a large model may take longer than is patient."""
        return self._model.computed + (self._draft.model.computed if self._draft else 0)

    def close(self) -> None:
        """Stop the compute thread; open generations fail with Unavailable CLOSING."""
        self._loop.close()

    def _wrong_task(self, wanted: str) -> FailedPrecondition:
        return FailedPrecondition(
            "WRONG_TASK", f"This model generates text; it does not {wanted}: call Generate."
        )


class Draft(NamedTuple):
    """A model that guesses for another, and the longest text it reads."""

    model: Model
    context: int


class _Parts(NamedTuple):
    """What a version's files make."""

    model: Model
    context: int
    text: TextTokenizer
    chat: ChatTemplate


def load(spec: ModelSpec, precision: str = "") -> TorchEngine:
    """Load a model, and its draft model; blocks. precision: see `sizing.resolve`.

    Raises FailedPrecondition NO_ENGINE for models that are not ours, BAD_DRAFT for a draft model
    with other tokens; Unavailable LOAD_FAILED for files that are damaged.
    """
    began = time.monotonic()
    threads = spec.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    wished = wishes(spec)
    dtype = sizing.resolve(precision or wished.precision, spec.device)
    own = _parts(spec, dtype, threads)
    draft = None
    if spec.draft is not None:
        other = _parts(spec.draft, dtype, threads)
        if not own.text.same(other.text) or other.model.config.vocab < own.model.config.vocab:
            raise FailedPrecondition(
                "BAD_DRAFT",
                f"{spec.draft.ref} cannot guess for {spec.ref}, as it has other tokens; name a "
                "model with the same tokenizer as `draft`, or none.",
            )
        draft = Draft(other.model, other.context)
    log.info(
        "loaded %s: %s on %s with %d threads in %.2f s; %s%s",
        *(spec.ref, dtype, spec.device, threads, time.monotonic() - began),
        "batch-invariant" if own.model.exact else "last bits depend on the batch",
        f"; {spec.draft.ref} guesses" if spec.draft else "",
    )
    info = EngineInfo("torch", "generate", spec.device, dtype, own.context)
    return TorchEngine(info, own.model, own.text, own.chat, threads, wished, draft)


def _parts(spec: ModelSpec, dtype: str, threads: int) -> _Parts:
    reading = read(spec)
    weights: Weights
    if reading.header is None:
        weights = SafetensorsWeights(spec)
    else:
        weights = GgufWeights(main_file(spec, ".gguf"), reading.header)
    with torch.inference_mode():
        model = build(reading.config, weights, torch.device(spec.device), dtype, threads, spec)
    context = sizing.context_of(spec, reading.config)
    return _Parts(model, context, reading.text, reading.chat())
