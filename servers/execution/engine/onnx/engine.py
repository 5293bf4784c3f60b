"""The engine: one session, one compute thread; texts in batches, tensors as declared."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence

from llmos.lib.encoder import Encoded, TextEncoder, normalise
from llmos.lib.errors import FailedPrecondition, InvalidArgument, LLMOSError, Unavailable
from llmos.servers.execution.engine.base import Embeddings, ModelSpec
from llmos.servers.execution.engine.onnx.batcher import START_TOKENS, Batcher, Vectors
from llmos.servers.execution.engine.onnx.session import Session
from llmos.servers.execution.engine.serving import config
from llmos.servers.execution.engine.serving.config import Batching, Serving
from llmos.servers.execution.engine.serving.engine import ServedEngine

# Padded tokens in one batch. On two cores 2,048 is as fast as more and takes a fifth of the memory
# of 32 x 256; a GPU wants more work at once.
_BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}
_ENCODER_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


class OnnxEngine(ServedEngine):
    """Runs one ONNX model; embeds when the version's task is `embed`."""

    def __init__(self, spec: ModelSpec) -> None:
        """Load; blocks. Raises Unavailable LOAD_FAILED, FailedPrecondition NO_ENGINE."""
        serving = config.read(spec.files, spec.changes)
        session = Session(spec, serving.runtime)
        if config.FILE not in spec.files:
            serving = _of_classifier(spec, session, serving) or serving
        embeds = spec.task == "embed" and not serving.before and not serving.after
        self._session = session
        self._encoder: TextEncoder | None = None
        self._output = ""
        if embeds:
            self._output = self._embedding_output(spec)
            try:
                self._encoder = TextEncoder(spec.files, spec.context_length)
            except InvalidArgument as exc:
                raise Unavailable("LOAD_FAILED", f"{spec.ref} cannot be loaded: {exc}") from exc
        task = "embed" if embeds else "predict"
        super().__init__(dataclasses.replace(spec, task=task), session, serving, "onnx")
        self._texts: Batcher | None = None
        if self._encoder is not None:
            kind = session.device.partition(":")[0]
            self._texts = Batcher(
                self._encoder,
                self._embed_batch,
                self._executor,
                _BATCH_TOKENS[kind],
                self.statistics,
                START_TOKENS[kind],
            )
            self.info = dataclasses.replace(self.info, context_length=self._encoder.max_length)

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

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Turn texts into vectors; see Engine.embed."""
        if self._texts is None:
            raise self._wrong_task("does not embed texts")
        if not texts:
            raise InvalidArgument("EMPTY_INPUT", "There is no text to embed; give at least one.")
        for index, text in enumerate(texts):
            if not text:
                raise InvalidArgument("EMPTY_INPUT", f"Text {index} is empty; leave it out.")
        begun = self._arrived()
        try:
            result = await asyncio.wrap_future(self._texts.submit(texts))
        except BaseException:  # a cancelled one did not succeed either; it goes on to its caller
            self.statistics.add("fail", time.perf_counter() - begun)
            raise
        self.statistics.add("success", time.perf_counter() - begun)
        return result

    def tokenize(self, text: str) -> tuple[list[int], list[str]]:
        """Return token ids and their texts; see Engine.tokenize."""
        if self._encoder is None:
            raise self._wrong_task("has no tokenizer")
        return self._encoder.tokens(text)

    def close(self) -> None:
        """Stop the compute thread after what it does now; fail what still waits."""
        if self._texts is not None:
            self._texts.stop()
        super().close()
        if self._texts is not None:
            self._texts.fail_waiting()

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


def _of_classifier(spec: ModelSpec, session: Session, asked: Serving) -> Serving | None:
    """Return what a text classifier needs, when config.json says that the model is one.

    asked: what was asked for when it was loaded.
    """
    if not {"config.json", "tokenizer.json"} <= spec.files.keys():
        return None
    try:
        table = json.loads(spec.files["config.json"].read_text(encoding="utf-8"))
        classes = table.get("architectures") or []
        padding = int(table.get("pad_token_id") or 0)
    except (OSError, ValueError, AttributeError, TypeError) as exc:
        raise Unavailable(
            "LOAD_FAILED", f"{spec.ref} cannot be loaded: config.json is not usable: {exc}."
        ) from exc
    flat = [o.name for o in session.outputs if len(o.shape) == 2]
    if not flat or not any(str(c).endswith("ForSequenceClassification") for c in classes):
        return None
    names = [i.name for i in session.inputs]
    many = table.get("problem_type") == "multi_label_classification"
    pad = {n: float(padding if n == "input_ids" else 0) for n in names}
    return dataclasses.replace(
        asked,
        batching=dataclasses.replace(asked.batching or Batching(), pad=pad),
        before=({"step": "tokenize", "max_length": spec.context_length},),
        after=(
            {"step": "sigmoid" if many else "softmax", "input": flat[0]},
            {"step": "labels"},
        ),
    )
