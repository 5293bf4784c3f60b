"""Dynamic batching of texts: what waits when the compute thread gets free is done together.

Nothing waits for company. A round takes up to 32 texts of each waiting request, oldest request
first, so that a request of 2,048 texts delays a short one by a round and not by all of itself;
the round's texts are sorted by length and cut into the batches that cost the least in all.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.lib.encoder import Encoded, TextEncoder
from llmos.lib.errors import Unavailable
from llmos.servers.execution.engine.base import Embeddings
from llmos.servers.execution.engine.serving.statistics import Statistics

Vectors = npt.NDArray[np.float32]
BATCH_TEXTS = 32
ROUND_TEXTS = 64
# What starting a batch costs, in padded tokens: measured for a MiniLM on a CPU (4.8 ms beside
# 0.29 ms a token); a GPU computes many more before it is busy.
START_TOKENS = {"cpu": 16, "cuda": 512}


@dataclass
class _Request:
    texts: Sequence[str]
    result: Future[Embeddings] = field(default_factory=Future)
    taken: int = 0
    done: int = 0
    tokens: int = 0
    truncated: list[int] = field(default_factory=list)
    vectors: Vectors | None = None
    since: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class _Item:
    request: _Request
    index: int
    encoded: Encoded


class Batcher:
    """Owns the waiting texts of one model; computes on `executor`, which has one thread."""

    def __init__(
        self,
        encoder: TextEncoder,
        run: Callable[[Sequence[Encoded]], Vectors],
        executor: Executor,
        batch_tokens: int,
        statistics: Statistics | None = None,
        start_tokens: int = START_TOKENS["cpu"],
    ) -> None:
        """Prepare. run turns a batch into normalised vectors; batch_tokens bounds its padded size.

        The bound holds the memory of one batch down: attention takes its square. start_tokens: see
        START_TOKENS.
        """
        self._encoder = encoder
        self._run = run
        self._executor = executor
        self._batch_tokens = batch_tokens
        self._statistics = statistics or Statistics()
        self._start_tokens = start_tokens
        self._lock = threading.Lock()
        self._waiting: deque[_Request] = deque()
        self._busy = False
        self._stopped = False

    def submit(self, texts: Sequence[str]) -> Future[Embeddings]:
        """Queue a request. Cancelling the future drops what has not been computed of it.

        Raises Unavailable UNLOADED after `stop`.
        """
        request = _Request(texts)
        with self._lock:
            if self._stopped:
                raise _unloaded()
            self._waiting.append(request)
            start, self._busy = not self._busy, True
        if start:
            self._executor.submit(self._round)
        return request.result

    def stop(self) -> None:
        """Start no further round."""
        with self._lock:
            self._stopped = True

    def fail_waiting(self) -> None:
        """Fail what still waits with Unavailable UNLOADED; when the executor has ended."""
        while self._waiting:
            _fail(self._waiting.popleft(), _unloaded())

    def _round(self) -> None:
        requests = self._pick()
        try:
            self._compute(requests)
        except Exception as exc:  # outermost in the compute thread: the callers get it, not stderr
            for request, _ in requests:
                _fail(request, exc)
        with self._lock:
            self._busy = bool(self._waiting) and not self._stopped
            if not self._busy:
                return
        self._executor.submit(self._round)  # a new task: tensor requests get their turn in between

    def _pick(self) -> list[tuple[_Request, range]]:
        """Take the next texts; requests with more of them stay, at the end of the queue."""
        picked, room = [], ROUND_TEXTS
        with self._lock:
            for _ in range(len(self._waiting)):
                if room <= 0:
                    break
                request = self._waiting.popleft()
                if request.result.done():  # cancelled, or failed in an earlier round
                    continue
                first = request.taken
                if not first:
                    self._statistics.add("queue", time.perf_counter() - request.since)
                request.taken = min(len(request.texts), first + min(BATCH_TEXTS, room))
                room -= request.taken - first
                picked.append((request, range(first, request.taken)))
                if request.taken < len(request.texts):
                    self._waiting.append(request)
        return picked

    def _compute(self, requests: Sequence[tuple[_Request, range]]) -> None:
        begun = time.perf_counter()
        items = []
        for request, indices in requests:
            for index in indices:
                encoded = self._encoder.encode(request.texts[index])
                request.tokens += len(encoded.ids)
                if encoded.cut:
                    request.truncated.append(index)
                items.append(_Item(request, index, encoded))
        items.sort(key=lambda item: len(item.encoded.ids))
        lengths = [len(item.encoded.ids) for item in items]
        self._statistics.add("compute_input", time.perf_counter() - begun, len(requests))
        at = 0
        for size in partition(lengths, self._batch_tokens, self._start_tokens):
            batch = [i for i in items[at : at + size] if not i.request.result.done()]
            at += size
            if batch:
                begun = time.perf_counter()
                vectors = self._run([item.encoded for item in batch])
                ran = time.perf_counter() - begun
                self._statistics.ran(len(batch), 0.0, ran, 0.0)
                self._statistics.add("compute_infer", ran, 0)
                _deliver(batch, vectors)


def partition(lengths: Sequence[int], most_tokens: int, start_tokens: int) -> list[int]:
    """Cut texts of ascending lengths into batches; return their sizes, which cost the least.

    A batch costs `start_tokens` and its padded size. By dynamic programming over the last batch.
    """
    best = [0.0] + [float("inf")] * len(lengths)
    size = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        longest = lengths[end - 1]
        for count in range(1, min(end, BATCH_TEXTS) + 1):
            if count > 1 and count * longest > most_tokens:
                break
            cost = best[end - count] + start_tokens + count * longest
            if cost < best[end]:
                best[end], size[end] = cost, count
    sizes = []
    end = len(lengths)
    while end:
        sizes.append(size[end])
        end -= size[end]
    return sizes[::-1]


def _unloaded() -> Unavailable:
    return Unavailable("UNLOADED", "The model was unloaded; try again.")


def _deliver(batch: Sequence[_Item], vectors: Vectors) -> None:
    for item, vector in zip(batch, vectors, strict=True):
        request = item.request
        if request.vectors is None:
            request.vectors = np.empty((len(request.texts), vectors.shape[1]), np.float32)
        request.vectors[item.index] = vector
        request.done += 1
        if request.done == len(request.texts) and request.result.set_running_or_notify_cancel():
            request.result.set_result(
                Embeddings(request.vectors, request.tokens, sorted(request.truncated))
            )


def _fail(request: _Request, exc: BaseException) -> None:
    result: Future[Any] = request.result
    if not result.done() and result.set_running_or_notify_cancel():
        result.set_exception(exc)
