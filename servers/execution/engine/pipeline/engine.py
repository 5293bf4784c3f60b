"""Runs a pipeline: every node as soon as what it takes is there.

A step may give a list of tensors (the crops of an image, say). What takes a list runs once for
each element, all at the same time, so that the model's own worker batches them; the results are
lists again. Lists that are outputs are joined along their first axis.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.lib.errors import FailedPrecondition, InvalidArgument, LLMOSError
from llmos.servers.execution.engine.base import (
    Embeddings,
    Engine,
    EngineInfo,
    Generation,
    ModelSpec,
    Piece,
    Prediction,
)
from llmos.servers.execution.engine.pipeline.graph import ModelNode, Node, read, wrong
from llmos.servers.execution.engine.serving.checks import Fit
from llmos.servers.execution.engine.serving.statistics import Statistics

Array = npt.NDArray[Any]
Value = Array | list[Array]
_AT_ONCE = 32  # calls of one node on the elements of a list


class PipelineEngine(Engine):
    """One pipeline. Its models are called through `connect`'s seam and loaded when first called."""

    statistics: Statistics

    def __init__(self, spec: ModelSpec) -> None:
        """Read it. Raises Unavailable LOAD_FAILED, FailedPrecondition MISSING_EXTRA."""
        self._ref = spec.ref
        self._graph = read(next(iter(spec.files.values())), spec.files)
        own = spec.ref.partition("@")[0]
        if any(model.partition("@")[0] == own for model in self._graph.models):
            raise wrong(f"it calls itself, {own}")
        self.statistics = Statistics()
        dimensions = {i.name: [d if d != -1 else None for d in i.shape] for i in self._graph.inputs}
        self._fit = Fit(spec.ref, self._graph.inputs, self._graph.outputs, dimensions)
        self._pixels = {i.name for i in self._graph.inputs if i.raw}
        self._done = 0
        self.info = EngineInfo(
            engine="pipeline",
            task="predict",
            device="cpu",
            dtype="",
            inputs=self._graph.inputs,
            outputs=self._graph.outputs,
        )

    async def predict(self, request: Prediction) -> dict[str, Array]:
        """Run the graph; see Engine.predict."""
        if request.sequence is not None:
            return await super().predict(request)
        self.statistics.arrived()
        begun = time.perf_counter()
        try:
            answer = await self._run(request)
        except BaseException:
            self.statistics.add("fail", time.perf_counter() - begun)
            raise
        taken = time.perf_counter() - begun
        self.statistics.add("success", taken)
        self.statistics.ran(1, 0.0, taken, 0.0)
        return answer

    async def infer(self, inputs: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run the graph; see Engine.infer."""
        return await self.predict(Prediction(inputs, outputs))

    def generate(self, request: Generation) -> AsyncIterator[Piece]:
        """Raise FailedPrecondition WRONG_TASK."""
        raise self._wrong_task("does not generate text")

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Raise FailedPrecondition WRONG_TASK."""
        raise self._wrong_task("does not embed texts")

    def tokenize(self, text: str) -> tuple[list[int], list[str]]:
        """Raise FailedPrecondition WRONG_TASK."""
        raise self._wrong_task("has no tokenizer")

    def work(self) -> float:
        """Return the nodes that have run."""
        return float(self._done)

    def close(self) -> None:
        """Do nothing: there are no threads of its own."""

    async def _run(self, request: Prediction) -> dict[str, Array]:
        # Pixels may stand for an image file: the step that reads them checks them.
        checked = {
            name: _stand_in(array) if name in self._pixels and array.dtype == np.uint8 else array
            for name, array in request.inputs.items()
        }
        self._fit.check(checked, request.outputs)
        loop = asyncio.get_running_loop()
        values: dict[str, asyncio.Future[Value]] = {
            name: loop.create_future() for node in self._graph.nodes for name in node.gives
        }
        for name, array in request.inputs.items():
            values[name] = loop.create_future()
            values[name].set_result(array)
        try:
            async with asyncio.TaskGroup() as group:
                for node in self._graph.nodes:
                    group.create_task(self._node(node, values))
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        wanted = list(request.outputs) or [o.name for o in self._graph.outputs]
        return {name: _joined(name, values[name].result()) for name in wanted}

    async def _node(self, node: Node, values: Mapping[str, asyncio.Future[Value]]) -> None:
        given = {name: await values[name] for name in node.takes}
        try:
            results = await self._work(node, given)
        except LLMOSError as exc:
            exc.message = f"In {node.name} of {self._ref}: {exc.message}"
            raise
        self._done += 1
        for name in node.gives:
            values[name].set_result(results[name])

    async def _work(self, node: Node, given: dict[str, Value]) -> dict[str, Value]:
        if not isinstance(node.work, ModelNode):
            return dict(await asyncio.to_thread(node.work, given))
        call = node.work
        counts = {len(v) for v in given.values() if isinstance(v, list)}
        if not counts:
            return dict(await self._call(call, given))
        if len(counts) > 1:
            raise InvalidArgument("BAD_INPUT", f"lists of {sorted(counts)} elements do not match.")
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(index: int) -> dict[str, Array]:
            mine = {n: v[index] if isinstance(v, list) else v for n, v in given.items()}
            async with gate:
                return await self._call(call, mine)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(i)) for i in range(counts.pop())]
        found = [task.result() for task in tasks]
        return {name: [answer[name] for answer in found] for name in node.gives}

    async def _call(self, call: ModelNode, given: Mapping[str, Any]) -> dict[str, Array]:
        if self.models is None:
            raise FailedPrecondition(
                "NO_MODELS", "A pipeline needs a kernel, by which it calls its models."
            )
        tensors = {theirs: given[mine] for theirs, mine in call.inputs.items()}
        answers = await self.models.predict(call.model, tensors, list(call.outputs))
        return {mine: answers[theirs] for theirs, mine in call.outputs.items()}

    def _wrong_task(self, what: str) -> LLMOSError:
        return FailedPrecondition("WRONG_TASK", f"{self._ref} {what}; it runs on tensors.")


def _stand_in(array: Array) -> Array:
    return np.empty(len(array) if array.ndim else 1, object)


def _joined(name: str, value: Value) -> Array:
    if not isinstance(value, list):
        return value
    if not value:
        return np.empty(0, object)
    try:
        return np.concatenate([np.atleast_1d(v) for v in value])
    except ValueError as exc:
        raise InvalidArgument(
            "BAD_INPUT", f"Output {name!r} has parts of different shapes, which cannot be joined."
        ) from exc
