"""An engine for any model on tensors, with what its version declares around it.

`Model` is a bare model: ONNX Runtime's session, or a torch module. The order of a request: cache,
steps before, check, state, batch, model, state, steps after, cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llmos.lib.errors import FailedPrecondition, InvalidArgument, LLMOSError, Unimplemented
from llmos.servers.execution.engine.base import (
    Classes,
    Embeddings,
    Engine,
    EngineInfo,
    Generation,
    ModelSpec,
    Piece,
    Prediction,
    TensorSpec,
)
from llmos.servers.execution.engine.serving import cache as caching
from llmos.servers.execution.engine.serving.batcher import Runner, TensorBatcher
from llmos.servers.execution.engine.serving.chain import Chain
from llmos.servers.execution.engine.serving.config import Serving, bad
from llmos.servers.execution.engine.serving.sequences import Sequences, State
from llmos.servers.execution.engine.serving.statistics import Statistics

Array = npt.NDArray[Any]


class Model(Runner, Protocol):
    """A bare model that an engine serves."""

    device: str

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """Return what it takes."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """Return what it gives."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return what its file says beside the graph."""

    def check(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> None:
        """Raise InvalidArgument BAD_TENSOR where a request does not fit the model."""

    def follows(self, padded: frozenset[str]) -> frozenset[str]:
        """Return the outputs whose second axis is that of the inputs `padded`."""

    def work(self) -> float:
        """Return as Engine.work."""


class ServedEngine(Engine):
    """Serves one model. Subclasses add what is not tensors in, tensors out."""

    statistics: Statistics

    def __init__(self, spec: ModelSpec, model: Model, serving: Serving, engine: str) -> None:
        """Prepare and warm up; blocks.

        Raises Unavailable LOAD_FAILED, FailedPrecondition MISSING_EXTRA.
        """
        self._ref = spec.ref
        self._model = model
        self._serving = serving
        self.statistics = Statistics()
        self._chain = Chain(serving, spec.files, model.inputs, model.outputs, model.metadata)
        self._constants = self._make_constants()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=engine)
        states = serving.sequence.state if serving.sequence is not None else ()
        axes = {s.input: s.axis for s in states} | {s.output: s.axis for s in states}
        pad = frozenset(serving.batching.pad) if serving.batching is not None else frozenset()
        self._batches = TensorBatcher(
            model,
            self._executor,
            self.statistics,
            serving.batching,
            axes,
            fixed=frozenset(self._constants),
            follows=model.follows(pad),
        )
        self._sequences = Sequences(spec.ref, serving.sequence) if serving.sequence else None
        self._cache = caching.Cache(serving.cache) if serving.cache is not None else None
        floats = [o.dtype for o in model.outputs if "float" in o.dtype]
        self.info = EngineInfo(
            engine=engine,
            task=spec.task if spec.task == "embed" else "predict",
            device=model.device,
            dtype=floats[0] if floats else "",
            inputs=self._chain.inputs,
            outputs=self._chain.outputs,
            serving=serving,
        )
        self._warm_up()

    def generate(self, request: Generation) -> AsyncIterator[Piece]:
        """Raise FailedPrecondition WRONG_TASK: tensors only."""
        raise self._wrong_task("does not generate text")

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Raise FailedPrecondition WRONG_TASK: text encoders do that."""
        raise self._wrong_task("does not embed texts")

    def tokenize(self, text: str) -> tuple[list[int], list[str]]:
        """Raise FailedPrecondition WRONG_TASK: there is no tokenizer."""
        raise self._wrong_task("has no tokenizer")

    async def infer(self, inputs: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run the model; see Engine.infer. bfloat16 tensors are float32 arrays here."""
        return await self.predict(Prediction(inputs, outputs))

    async def predict(self, request: Prediction) -> dict[str, Array]:
        """Run the model with all that is declared; see Engine.predict."""
        if self._serving.stream is not None:
            raise Unimplemented(
                "DECOUPLED",
                f"{self._ref} answers a request several times; use PredictStream, or "
                "ModelStreamInfer.",
            )
        begun = self._arrived()
        try:
            answer = await self._predict(request)
        except BaseException:
            self.statistics.add("fail", time.perf_counter() - begun)
            raise
        self.statistics.add("success", time.perf_counter() - begun)
        return answer

    async def predict_stream(self, request: Prediction) -> AsyncIterator[dict[str, Array]]:
        """Answer for each piece of a long input as it is computed; see Engine.predict_stream."""
        stream = self._serving.stream
        if stream is None:
            yield await self.predict(request)
            return
        begun = self._arrived()
        try:
            feeds = await self._prepared(request)
            whole = feeds.get(stream.input)
            if whole is None or whole.ndim < 1 or whole.shape[-1] % stream.chunk or not whole.size:
                raise InvalidArgument(
                    "BAD_TENSOR",
                    f"Tensor {stream.input!r} must be there, with a last dimension that is a "
                    f"multiple of {stream.chunk}.",
                )
            state = self._state(request)
            for at in range(0, whole.shape[-1], stream.chunk):
                piece = feeds | {stream.input: whole[..., at : at + stream.chunk]}
                yield await self._computed(request, piece, state)
            if request.sequence is not None and state is not None and self._sequences is not None:
                self._sequences.leave(request.tenant, request.sequence, state)
        except BaseException:
            self.statistics.add("fail", time.perf_counter() - begun)
            raise
        self.statistics.add("success", time.perf_counter() - begun)

    async def classify(self, items: Sequence[str | bytes]) -> Classes:
        """Name what items are; see Engine.classify."""
        step = self._chain.labels()
        taken = [t for s in self._chain.before for t in s.takes if t.dtype == "object"]
        if step is None or not taken:
            return await super().classify(items)
        if not items:
            raise InvalidArgument("EMPTY_INPUT", "There is nothing to classify; give at least one.")
        name, scores = taken[0].name, []
        most = self._serving.batching.max if self._serving.batching is not None else 1
        parts = []
        for at in range(0, len(items), most):
            array = np.empty(len(items[at : at + most]), object)
            array[:] = items[at : at + most]
            parts.append(self.predict(Prediction({name: array}, [step.input])))
        for answer in await asyncio.gather(*parts):
            scores.append(answer[step.input])
        return Classes(np.concatenate(scores).astype(np.float32), step.names)

    def labels(self, output: str) -> Sequence[str] | None:
        """Return the names of an output's classes; see Engine.labels."""
        step = self._chain.labels()
        return step.names if step is not None and step.input == output else None

    def work(self) -> float:
        """Return as Engine.work; not after `close`."""
        return self._model.work()

    def close(self) -> None:
        """Stop the compute thread after what it does now; fail what still waits."""
        self._batches.stop()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._batches.fail_waiting()

    def _arrived(self) -> float:
        self.statistics.arrived()
        return time.perf_counter()

    async def _predict(self, request: Prediction) -> dict[str, Array]:
        key = b""
        if self._cache is not None and request.sequence is None:
            looked = time.perf_counter()
            key = caching.key(request.tenant, request.inputs, request.outputs)
            found = self._cache.get(key)
            taken = time.perf_counter() - looked
            self.statistics.add("cache_miss" if found is None else "cache_hit", taken)
            if found is not None:
                return found
        feeds = await self._prepared(request)
        state = self._state(request)
        answer = await self._computed(request, feeds, state)
        if state is not None and request.sequence is not None and self._sequences is not None:
            self._sequences.leave(request.tenant, request.sequence, state)
        if key and self._cache is not None:
            self._cache.put(key, answer)
        return answer

    async def _prepared(self, request: Prediction) -> dict[str, Array]:
        if not self._chain.before:
            return dict(request.inputs)
        begun = time.perf_counter()
        feeds = await asyncio.to_thread(self._chain.prepare, request.inputs)
        self.statistics.add("compute_input", time.perf_counter() - begun, 0)
        return self._cast(feeds)

    def _cast(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Give what steps made the types that the model takes (int32 token ids, say)."""
        made = {g.name for s in self._chain.before for g in s.gives}
        types = {i.name: i.dtype for i in self._model.inputs if i.name in made}
        return {
            name: array.astype("float32" if types[name] == "bfloat16" else types[name], copy=False)
            if name in types and types[name] != "object"
            else array
            for name, array in feeds.items()
        }

    def _state(self, request: Prediction) -> State | None:
        if request.sequence is None:
            if self._sequences is None:
                return None
            return self._sequences.fresh()  # a call on its own: its state starts and ends with it
        if self._sequences is None:
            raise InvalidArgument(
                "NO_SEQUENCES",
                f"{self._ref} keeps no state between calls; leave the sequence out.",
            )
        return self._sequences.enter(request.tenant, request.sequence)

    async def _computed(
        self, request: Prediction, feeds: dict[str, Array], state: State | None
    ) -> dict[str, Array]:
        if state is None or self._sequences is None:
            return await self._run(request, feeds, feeds)
        async with state.lock:
            rows = {a.shape[0] for a in feeds.values() if a.ndim}
            if rows - {1}:
                raise InvalidArgument(
                    "BAD_TENSOR", f"A request of a model with state has one row, not {max(rows)}."
                )
            carried = dict(state.carried)
            try:
                full = self._sequences.before(state, feeds)
                return await self._run(request, full, feeds, state)
            except BaseException:
                state.carried = carried  # a call that failed has changed nothing
                raise

    async def _run(
        self,
        request: Prediction,
        feeds: dict[str, Array],
        given: Mapping[str, Array],
        state: State | None = None,
    ) -> dict[str, Array]:
        needed = self._chain.needs(request.outputs)
        if state is not None and self._serving.sequence is not None and needed:
            needed += [s.output for s in self._serving.sequence.state]
        everything = feeds | self._constants
        self._model.check(everything, needed)
        results = await asyncio.wrap_future(self._batches.submit(everything, needed))
        if state is not None and self._sequences is not None:
            results = self._sequences.after(state, results)
        if self._chain.after:
            begun = time.perf_counter()
            results = await asyncio.to_thread(self._chain.finish, {**given, **results})
            self.statistics.add("compute_output", time.perf_counter() - begun, 0)
        wanted = request.outputs or [o.name for o in self._chain.outputs]
        return {name: results[name] for name in wanted}

    def _make_constants(self) -> dict[str, Array]:
        types = {i.name: i for i in self._model.inputs}
        made = {}
        for name, value in self._serving.constants.items():
            if name not in types:
                raise bad(f"constants.{name} is no input of the model; it takes {', '.join(types)}")
            try:
                made[name] = np.array(value, types[name].dtype)
            except (TypeError, ValueError) as exc:
                raise bad(f"constants.{name} is no {types[name].dtype}: {exc}") from exc
        return made

    def _warm_up(self) -> None:
        """Run once per declared size, so that no caller pays for what the first run prepares.

        Only where the shapes are known; a model that refuses zeros is not refused for that.
        """
        runtime = self._serving.runtime
        states = self._serving.sequence.state if self._serving.sequence is not None else ()
        hidden = {s.input: s for s in states}
        for size in runtime.warm_up:
            feeds = dict(self._constants)
            for spec in self._model.inputs:
                if spec.name in hidden:
                    one = hidden[spec.name]
                    shape = (*one.shape[: one.axis], size, *one.shape[one.axis :])
                elif spec.name not in feeds:
                    first, *rest = spec.shape or (1,)
                    shape = (size if first == -1 else first, *rest)
                    if -1 in rest:
                        free = runtime.sizes.get(spec.name, 0)
                        shape = tuple(free if n == -1 else n for n in shape)
                    if 0 in shape:
                        return
                else:
                    continue
                dtype = "float32" if spec.dtype == "bfloat16" else spec.dtype
                if dtype in ("object", ""):
                    return
                feeds[spec.name] = np.zeros(shape, dtype)
            try:
                self._executor.submit(self._model.run, feeds, [], None).result()
            except InvalidArgument:
                return

    def _wrong_task(self, what: str) -> LLMOSError:
        return FailedPrecondition("WRONG_TASK", f"{self._ref} {what}; it runs on tensors.")
