"""The engine: one session, one compute thread, texts in batches, tensors as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from llmos.lib.encoder import Encoded, TextEncoder, normalise
from llmos.lib.errors import FailedPrecondition, InvalidArgument, LLMOSError, Unavailable
from llmos.servers.execution.engine.base import (
    Embeddings,
    Engine,
    EngineInfo,
    Generation,
    ModelSpec,
    Piece,
)
from llmos.servers.execution.engine.onnx.batcher import Batcher, Vectors
from llmos.servers.execution.engine.onnx.session import Session

# Padded tokens in one batch. On two cores 2,048 is as fast as more and takes a fifth of the memory
# of 32 x 256; a GPU wants more work at once.
_BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}
_ENCODER_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


class OnnxEngine(Engine):
    """Runs one ONNX model; embeds when the version's task is `embed`."""

    def __init__(self, spec: ModelSpec) -> None:
        """Load; blocks. Raises Unavailable LOAD_FAILED, FailedPrecondition NO_ENGINE."""
        self._ref = spec.ref
        self._session = Session(spec)
        self._encoder: TextEncoder | None = None
        self._output = ""
        if spec.task == "embed":
            self._output = self._embedding_output(spec)
            try:
                self._encoder = TextEncoder(spec.files, spec.context_length)
            except InvalidArgument as exc:
                raise Unavailable("LOAD_FAILED", f"{spec.ref} cannot be loaded: {exc}") from exc
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="onnx")
        self._batcher: Batcher | None = None
        if self._encoder is not None:
            tokens = _BATCH_TOKENS[self._session.device.partition(":")[0]]
            self._batcher = Batcher(self._encoder, self._embed_batch, self._executor, tokens)
        floats = [o.dtype for o in self._session.outputs if "float" in o.dtype]
        self.info = EngineInfo(
            engine="onnx",
            task=spec.task,
            device=self._session.device,
            dtype=floats[0] if floats else "",
            context_length=self._encoder.max_length if self._encoder else 0,
            inputs=self._session.inputs,
            outputs=self._session.outputs,
        )

    def _embedding_output(self, spec: ModelSpec) -> str:
        unknown = [i.name for i in self._session.inputs if i.name not in _ENCODER_INPUTS]
        # A vector per text if the model pools by itself, else one per token, first output first.
        outputs = self._session.outputs
        pooled = [o.name for o in outputs if len(o.shape) == 2]
        named = [name for name in pooled if "sentence_embedding" in name]
        hidden = [o.name for o in outputs if len(o.shape) == 3]
        output = next(iter([*named, *hidden, *pooled]), None)
        if unknown or output is None:
            raise FailedPrecondition(
                "NO_ENGINE",
                f"{spec.ref} is no text encoder that the onnx engine knows: it takes "
                f"{[i.name for i in self._session.inputs]} and gives "
                f"{[o.name for o in self._session.outputs]}.",
            )
        return output

    def generate(self, request: Generation) -> AsyncIterator[Piece]:
        """Raise FailedPrecondition WRONG_TASK: the onnx engine does not generate."""
        raise self._wrong_task("does not generate text")

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Turn texts into vectors; see Engine.embed."""
        if self._batcher is None:
            raise self._wrong_task("does not embed texts")
        if not texts:
            raise InvalidArgument("EMPTY_INPUT", "There is no text to embed; give at least one.")
        for index, text in enumerate(texts):
            if not text:
                raise InvalidArgument("EMPTY_INPUT", f"Text {index} is empty; leave it out.")
        return await asyncio.wrap_future(self._batcher.submit(texts))

    async def infer(
        self, inputs: dict[str, npt.NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the model on tensors; see Engine.infer. bfloat16 tensors are float32 arrays here."""
        self._session.check(inputs, outputs)
        options = ort.RunOptions()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._executor, self._session.run, inputs, outputs, options
            )
        except asyncio.CancelledError:
            options.terminate = True  # ends the run at its next node
            raise

    def tokenize(self, text: str) -> tuple[list[int], list[str]]:
        """Return token ids and their texts; see Engine.tokenize."""
        if self._encoder is None:
            raise self._wrong_task("has no tokenizer")
        return self._encoder.tokens(text)

    def work(self) -> float:
        """Return the runs finished, and what the one in progress computes; not after `close`."""
        return self._session.work()

    def close(self) -> None:
        """Stop the compute thread after what it does now; fail what still waits."""
        if self._batcher is not None:
            self._batcher.stop()
        self._executor.shutdown(wait=True, cancel_futures=True)
        if self._batcher is not None:
            self._batcher.fail_waiting()

    def _embed_batch(self, batch: Sequence[Encoded]) -> Vectors:
        assert self._encoder is not None
        feeds = self._encoder.batch(batch)
        names = {i.name: i.dtype for i in self._session.inputs}
        given = {n: a.astype(names[n], copy=False) for n, a in feeds.items() if n in names}
        result = self._session.run(given, [self._output])[self._output]
        if result.ndim == 2:
            return normalise(result)
        return self._encoder.pool(result, feeds["attention_mask"])

    def _wrong_task(self, what: str) -> LLMOSError:
        does = "embeds texts and runs on tensors" if self._encoder else "runs on tensors"
        return FailedPrecondition("WRONG_TASK", f"{self._ref} {what}; it {does}.")
