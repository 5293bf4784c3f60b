"""Runs a text encoder over a corpus and says how near it is to the original, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from llmos.lib.encoder import Encoded, TextEncoder

Vectors = npt.NDArray[np.float32]
Network = Callable[[dict[str, npt.NDArray[np.int64]]], npt.NDArray[Any]]
_BATCH = 16
_TIMED = 40


@dataclass(frozen=True)
class Difference:
    """Cosines of vectors with the original's, one pair for each text."""

    minimum: float
    mean: float


def embed(encoder: TextEncoder, network: Network, texts: Sequence[str]) -> Vectors:
    """Return the texts' vectors, computed in batches of texts of about the same length."""
    encoded = [encoder.encode(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i].ids))
    rows: list[Vectors] = [np.empty(0, np.float32)] * len(texts)
    for start in range(0, len(order), _BATCH):
        indices = order[start : start + _BATCH]
        for index, row in zip(
            indices, _run(encoder, network, [encoded[i] for i in indices]), strict=True
        ):
            rows[index] = row
    return np.stack(rows)


def latency_s(encoder: TextEncoder, network: Network, texts: Sequence[str]) -> float:
    """Return the median seconds from one text to its vector. Give a network with one thread."""
    timed = sorted(texts, key=len)[len(texts) // 2 :][:_TIMED]
    for text in timed[:3]:  # the first runs plan and allocate
        _run(encoder, network, [encoder.encode(text)])
    seconds = []
    for text in timed:
        start = time.perf_counter()
        _run(encoder, network, [encoder.encode(text)])
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def difference(vectors: Vectors, original: Vectors) -> Difference:
    """Compare row by row; both are normalised."""
    cosines = np.minimum(np.sum(vectors.astype(np.float64) * original, axis=1), 1.0)
    return Difference(float(cosines.min()), float(cosines.mean()))


def onnx_network(path: Path, threads: int) -> Network:
    """Return the network in an ONNX file as a function of its inputs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(feeds: dict[str, npt.NDArray[np.int64]]) -> npt.NDArray[Any]:
        hidden: npt.NDArray[Any] = session.run(None, {name: feeds[name] for name in names})[0]
        return hidden

    return run


def _run(encoder: TextEncoder, network: Network, batch: Sequence[Encoded]) -> Vectors:
    feeds = encoder.batch(batch)
    return encoder.pool(network(feeds), feeds["attention_mask"])
