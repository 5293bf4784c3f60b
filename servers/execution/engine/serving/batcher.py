"""Dynamic batching of tensors: requests that wait are run together along their first axis.

One compute thread. Only requests whose other dimensions agree are put together, so that nothing
is padded; inputs declared in `batching.pad` may differ in their second axis, and of those the
ones nearest in length go together, within the declared share of filling.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llmos.lib.errors import Internal, InvalidArgument, LLMOSError, ResourceExhausted, Unavailable
from llmos.servers.execution.engine.serving.config import Batching
from llmos.servers.execution.engine.serving.statistics import Statistics

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
# Errors of a model that brings its own code: a request that kills it must not harm its neighbours.
_ONE = frozenset({"MODEL_CRASHED", "MODEL_FAILED", "MODEL_HUNG", "MODEL_MEMORY"})


class Stopper(Protocol):
    """Ends a run that nobody waits for any more."""

    terminate: bool


class Runner(Protocol):
    """A loaded model without any of what is around it."""

    ref: str

    def stopper(self) -> Stopper:
        """Return what can end one run."""

    def run(self, inputs: Tensors, outputs: Sequence[str], stopper: Any = None) -> dict[str, Array]:
        """Run the model; blocks. Raises InvalidArgument BAD_TENSOR, Cancelled."""


@dataclass(eq=False)
class Waiting:
    """One request in the queue. key: what must agree within a batch; length: of padded inputs."""

    inputs: Tensors
    outputs: tuple[str, ...]
    rows: int
    length: int
    key: Any
    result: Future[dict[str, Array]] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


class TensorBatcher:
    """Owns the waiting requests of one model; computes on `executor`, which has one thread.

    axes: batch axis of the inputs and outputs for which it is not the first.
    """

    def __init__(
        self,
        runner: Runner,
        executor: Executor,
        statistics: Statistics,
        batching: Batching | None,
        axes: Mapping[str, int] | None = None,
        fixed: frozenset[str] = frozenset(),
        follows: frozenset[str] = frozenset(),
    ) -> None:
        """Prepare. Without `batching` requests run one by one.

        fixed: inputs without a batch. follows: outputs whose second axis is as long as that of the
        padded inputs.
        """
        self._runner = runner
        self._executor = executor
        self._statistics = statistics
        self._batching = batching or Batching(max=1)
        self._alone = batching is None
        self._axes = axes or {}
        self._fixed = fixed
        self._follows = follows
        self._waiting: deque[Waiting] = deque()
        self._rows = 0
        self._lock = threading.Condition()
        self._busy = False
        self._stopped = False

    def submit(self, inputs: Tensors, outputs: Sequence[str]) -> Future[dict[str, Array]]:
        """Queue a request. Cancelling the future drops it, or ends the run if it has it alone.

        Raises InvalidArgument BAD_TENSOR, BATCH_TOO_LARGE; ResourceExhausted QUEUE_FULL;
        Unavailable UNLOADED.
        """
        request = self._request(inputs, tuple(outputs))
        with self._lock:
            if self._stopped:
                raise _unloaded()
            if self._rows + request.rows > self._batching.queue and self._waiting:
                raise ResourceExhausted(
                    "QUEUE_FULL",
                    f"{self._rows} rows wait for {self._runner.ref}, as many as may; try again "
                    "later, or raise batching.queue in its serving.toml.",
                    retry_after_s=0.1,
                )
            self._waiting.append(request)
            self._rows += request.rows
            start, self._busy = not self._busy, True
            self._lock.notify()
        if start:
            self._executor.submit(self._round)
        return request.result

    def stop(self) -> None:
        """Start no further round."""
        with self._lock:
            self._stopped = True
            self._lock.notify()

    def fail_waiting(self) -> None:
        """Fail what still waits with Unavailable UNLOADED; when the executor has ended."""
        while self._waiting:
            _fail(self._waiting.popleft(), _unloaded())

    def _request(self, inputs: Tensors, outputs: tuple[str, ...]) -> Waiting:
        if self._alone:
            return Waiting(inputs, outputs, 1, 0, None)
        rows, first, length = 0, "", 0
        key: list[tuple[Any, ...]] = []
        for name, array in inputs.items():
            if name in self._fixed:
                key.append((name, array.shape, array.tobytes()))
                continue
            axis = self._axes.get(name, 0)
            if array.ndim <= axis:
                raise InvalidArgument(
                    "BAD_TENSOR", f"Tensor {name!r} has no batch dimension; it needs one."
                )
            if first and array.shape[axis] != rows:
                raise InvalidArgument(
                    "BAD_TENSOR",
                    f"Tensor {name!r} has {array.shape[axis]} rows and {first!r} has {rows}; all "
                    "inputs of a request must have as many.",
                )
            rows, first = array.shape[axis], name
            rest = list(array.shape)
            rest[axis] = 0
            if name in self._batching.pad and axis == 0 and array.ndim > 1:
                length = max(length, array.shape[1])
                rest[1] = -1
            key.append((name, tuple(rest)))
        if rows > self._batching.max:
            raise InvalidArgument(
                "BATCH_TOO_LARGE",
                f"The request has {rows} rows; {self._runner.ref} takes {self._batching.max} at "
                "once: split it.",
            )
        return Waiting(inputs, outputs, rows, length, (outputs, tuple(sorted(key, key=repr))))

    def _round(self) -> None:
        batch = self._pick()
        if batch:
            self._run(batch)
        with self._lock:
            self._busy = bool(self._waiting) and not self._stopped
            if not self._busy:
                return
        self._executor.submit(self._round)  # a new task: other work of the thread gets its turn

    def _pick(self) -> list[Waiting]:
        """Wait for company as declared; take the oldest request and those that go with it."""
        with self._lock:
            while True:
                self._forget_cancelled()
                if not self._waiting or self._stopped:
                    return []
                batch, rows, full = self._fit()
                left = self._waiting[0].since + self._batching.delay_ms / 1e3 - time.perf_counter()
                if full or rows in self._batching.preferred or self._alone or left <= 0:
                    break
                self._lock.wait(left)
            for request in batch:
                self._waiting.remove(request)
                self._rows -= request.rows
        return batch

    def _fit(self) -> tuple[list[Waiting], int, bool]:
        """Return the batch that could run now, its rows, and whether no more would fit."""
        oldest = self._waiting[0]
        if self._alone:
            return [oldest], oldest.rows, True
        likes = [r for r in self._waiting if r is not oldest and r.key == oldest.key]
        if oldest.length:
            likes.sort(key=lambda r: abs(r.length - oldest.length))
        batch, rows = [oldest], oldest.rows
        longest, tokens = oldest.length, oldest.rows * oldest.length
        full = rows >= self._batching.max
        for request in likes:
            if rows + request.rows > self._batching.max:
                full = True
                continue
            over = max(longest, request.length)
            filled = tokens + request.rows * request.length
            if over and filled < (1 - self._batching.waste) * over * (rows + request.rows):
                continue
            batch.append(request)
            rows, longest, tokens = rows + request.rows, over, filled
            if rows == self._batching.max:
                full = True
                break
        return batch, rows, full

    def _forget_cancelled(self) -> None:
        for request in [r for r in self._waiting if r.result.cancelled()]:
            self._waiting.remove(request)
            self._rows -= request.rows

    def _run(self, batch: Sequence[Waiting]) -> None:
        begun = time.perf_counter()
        for request in batch:
            self._statistics.add("queue", begun - request.since)
        try:
            answers = self._compute(batch, begun)
        except Exception as exc:  # outermost in the compute thread: the callers get it, not stderr
            if len(batch) > 1 and _blames_one(exc):
                for request in batch:  # which of them was it?
                    self._run([request])
                return
            for request in batch:
                _fail(request, exc)
            return
        for request, answer in zip(batch, answers, strict=True):
            if request.result.set_running_or_notify_cancel():
                request.result.set_result(answer)

    def _compute(self, batch: Sequence[Waiting], begun: float) -> list[dict[str, Array]]:
        stopper = self._runner.stopper()
        left = threading.Semaphore(len(batch) - 1)

        def gone(future: Future[Any]) -> None:
            if future.cancelled() and not left.acquire(blocking=False):
                stopper.terminate = True  # it was the last one that waited for this run

        for request in batch:
            request.result.add_done_callback(gone)
        feeds = batch[0].inputs if len(batch) == 1 else self._together(batch)
        ready = time.perf_counter()
        results = self._runner.run(feeds, batch[0].outputs, stopper)
        ran = time.perf_counter()
        answers = [results] if len(batch) == 1 else self._apart(batch, feeds, results)
        rows = sum(request.rows for request in batch)
        done = time.perf_counter()
        self._statistics.ran(rows, ready - begun, ran - ready, done - ran)
        for name, seconds in (
            ("compute_input", ready - begun),
            ("compute_infer", ran - ready),
            ("compute_output", done - ran),
        ):
            self._statistics.add(name, seconds * len(batch), len(batch))
        return answers

    def _together(self, batch: Sequence[Waiting]) -> dict[str, Array]:
        feeds = {}
        longest = max(request.length for request in batch)
        for name, array in batch[0].inputs.items():
            if name in self._fixed:
                feeds[name] = array
                continue
            parts = [request.inputs[name] for request in batch]
            if name in self._batching.pad:
                parts = [_widen(part, longest, self._batching.pad[name]) for part in parts]
            feeds[name] = np.concatenate(parts, axis=self._axes.get(name, 0))
        return feeds

    def _apart(
        self, batch: Sequence[Waiting], feeds: Tensors, results: Tensors
    ) -> list[dict[str, Array]]:
        answers: list[dict[str, Array]] = [{} for _ in batch]
        rows = sum(request.rows for request in batch)
        longest = max(request.length for request in batch)
        for name, array in results.items():
            axis = self._axes.get(name, 0)
            if array.ndim <= axis or array.shape[axis] != rows:
                raise Internal(
                    "BAD_BATCHING",
                    f"{self._runner.ref} gave {name!r} of shape {list(array.shape)} for a batch of "
                    f"{rows} rows: its outputs do not follow the batch; take [batching] out of its "
                    "serving.toml.",
                )
            at = 0
            for answer, request in zip(answers, batch, strict=True):
                part = (
                    np.take(array, range(at, at + request.rows), axis)
                    if axis
                    else (array[at : at + request.rows])
                )
                if longest and name in self._follows:
                    part = part[:, : request.length]
                # A copy: a view would keep the whole batch's memory for one caller.
                answer[name] = part.copy()
                at += request.rows
        return answers


def _widen(array: Array, length: int, value: float) -> Array:
    if array.shape[1] == length:
        return array
    shape = (array.shape[0], length, *array.shape[2:])
    wide = np.full(shape, value, array.dtype)
    wide[:, : array.shape[1]] = array
    return wide


def _blames_one(exc: Exception) -> bool:
    """Return whether a batch failed by what is in one of its requests."""
    return isinstance(exc, InvalidArgument) or (isinstance(exc, LLMOSError) and exc.reason in _ONE)


def _unloaded() -> LLMOSError:
    return Unavailable("UNLOADED", "The model was unloaded; try again.")


def _fail(request: Waiting, exc: BaseException) -> None:
    if request.result.set_running_or_notify_cancel():
        request.result.set_exception(exc)
