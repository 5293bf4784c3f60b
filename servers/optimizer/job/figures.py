"""How near a version is to its source: figures by streaming over batches, and gates on them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.api.optimizer.v1 import jobs_pb2, measure_pb2
from llmos.api.storage.v1 import registry_pb2
from llmos.lib.errors import FailedPrecondition
from llmos.servers.optimizer.job.context import metric
from llmos.servers.optimizer.job.models.subject import Batch, Network, Subject

UNITS = {"size": "bytes", "memory": "bytes", "latency_one": "ms", "latency_p50": "ms"}
UNITS |= {"latency_p99": "ms", "throughput": "1/s"}
_LOWER = (
    *("relative_error", "max_abs_difference", "perplexity", "size", "memory", "wer"),
    *("latency_one", "latency_p50", "latency_p99", "calibration_error", "loss"),
    *("train_loss", "validation_loss"),
)
_TIMED = 24


@dataclass
class Sums:
    """What is summed up over batches of outputs and those of the source."""

    task: str
    difference: float = 0.0
    norm: float = 0.0
    largest: float = 0.0
    same: int = 0
    rows: int = 0
    cosines: list[float] = field(default_factory=list)
    log_loss: float = 0.0
    tokens: int = 0

    def add(self, out: npt.NDArray[np.float32], source: npt.NDArray[np.float32]) -> None:
        """Take in rows, [n, width]."""
        gap = out.astype(np.float64) - source
        self.difference += float(np.sum(gap * gap))
        self.norm += float(np.sum(np.square(source, dtype=np.float64)))
        self.largest = max(self.largest, float(np.abs(gap).max(initial=0.0)))
        self.rows += len(out)
        if math.isnan(self.difference):
            self.largest = math.nan
        if self.task == "embed":
            self.cosines += np.minimum(np.sum(out * source, axis=1, dtype=np.float64), 1).tolist()
        elif out.shape[1] > 1:
            self.same += int(np.sum(out.argmax(axis=1) == source.argmax(axis=1)))

    def add_texts(self, out: npt.NDArray[np.float32], batch: Batch) -> None:
        """Take in logits of real tokens [n, vocabulary], for the perplexity of the next ones."""
        at = 0
        mask, ids = batch.feeds["attention_mask"] > 0, batch.feeds["input_ids"]
        for row, kept in zip(ids, mask, strict=True):
            count = int(kept.sum())
            logits = out[at : at + count - 1].astype(np.float64)
            at += count
            if count < 2:
                continue
            top = logits.max(axis=1)
            total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
            following = row[kept][1:]
            self.log_loss += float(np.sum(total - logits[np.arange(count - 1), following]))
            self.tokens += count - 1

    def figures(self) -> dict[str, float]:
        """Return the figures, by name."""
        found = {
            "relative_error": math.sqrt(self.difference / self.norm) if self.norm else math.nan,
            "max_abs_difference": self.largest,
        }
        if self.cosines:
            found["cosine_min"] = min(self.cosines)
            found["cosine_mean"] = statistics.fmean(self.cosines)
        elif self.task in ("classify", "generate") and self.rows:
            found["argmax_agreement"] = self.same / self.rows
        if self.tokens:
            found["perplexity"] = math.exp(min(self.log_loss / self.tokens, 700.0))
        return found


def outputs(subject: Subject, network: Network, batches: Iterable[Batch]) -> list[Any]:
    """Return what is compared, a row array for each batch."""
    return [subject.view(network(b.feeds), b.feeds) for b in batches]


def compare(
    subject: Subject, network: Network, batches: Sequence[Batch], source: Sequence[Any]
) -> dict[str, float]:
    """Return the figures of a network against `outputs` of its source on the same batches."""
    sums = Sums(subject.task)
    for batch, expected in zip(batches, source, strict=True):
        out = subject.view(network(batch.feeds), batch.feeds)
        sums.add(out, expected)
        if subject.task == "generate":
            sums.add_texts(out, batch)
    return sums.figures()


def in_order(subject: Subject, network: Network, inputs: Sequence[Any]) -> npt.NDArray[np.float32]:
    """Return the row of each input: vectors or scores."""
    found: list[Any] = [None] * len(inputs)
    for batch in subject.batches(inputs):
        out = subject.view(network(batch.feeds), batch.feeds)
        for index, row in zip(batch.order, out, strict=True):
            found[index] = row
    return np.stack(found)


def perplexity(subject: Subject, network: Network, batches: Sequence[Batch]) -> dict[str, float]:
    """Return the perplexity of a language model's texts."""
    sums = Sums(subject.task)
    for batch in batches:
        sums.add_texts(subject.view(network(batch.feeds), batch.feeds), batch)
    if not sums.tokens:
        raise FailedPrecondition("TOO_FEW_ROWS", "The texts have no token to be foretold.")
    return {"perplexity": math.exp(min(sums.log_loss / sums.tokens, 700.0))}


def latency_ms(network: Network, batches: Sequence[Batch]) -> float:
    """Return the median milliseconds of one row; give a network with one thread."""
    singles = [
        {name: array[:1] for name, array in batch.feeds.items()} for batch in batches[-_TIMED:]
    ]
    network(singles[0])  # the first run plans and allocates
    seconds = []
    for feeds in (singles * _TIMED)[:_TIMED]:
        start = time.perf_counter()
        network(feeds)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1e3


def holds(
    gate: measure_pb2.Gate, figures: Mapping[str, float], original: Mapping[str, float]
) -> str:
    """Return "" if a gate holds, else what is wrong."""
    name = gate.measure
    if name not in figures:
        return f"{name} was not measured (there are {', '.join(sorted(figures))})"
    value = figures[name]
    if gate.HasField("least") and not value >= gate.least:
        return f"{name} is {value:.6g}, at least {gate.least:g} was asked"
    if gate.HasField("most") and not value <= gate.most:
        return f"{name} is {value:.6g}, at most {gate.most:g} was asked"
    if gate.HasField("most_loss"):
        before = original.get(name, math.nan)
        loss = value - before if name in _LOWER else before - value
        if not loss <= gate.most_loss:
            return (
                f"{name} went from {before:.6g} to {value:.6g}, which is worse by more than "
                f"{gate.most_loss:g}"
            )
    return "" if math.isfinite(value) else f"{name} is {value}"


def closed(
    gates: Sequence[measure_pb2.Gate],
    figures: Mapping[str, float],
    original: Mapping[str, float],
) -> str:
    """Return what gates do not hold, in words; "" when all do."""
    return "; ".join(filter(None, (holds(gate, figures, original) for gate in gates)))


def too_far(what: str, why: str) -> FailedPrecondition:
    """Return the error of a version that its gates refuse."""
    return FailedPrecondition(
        "TOO_FAR", f"{what} is too far from its source: {why}; it was not registered."
    )


def lower_is_better(name: str) -> bool:
    """Say which way is better."""
    return name in _LOWER


def comparison(
    label: str, ref: str, figures: Mapping[str, float], rows: int
) -> jobs_pb2.Comparison:
    """Return the figures as the job tells them."""
    return jobs_pb2.Comparison(
        label=label,
        ref=ref,
        cosine_min=figures.get("cosine_min", 0),
        cosine_mean=figures.get("cosine_mean", 0),
        size_bytes=int(figures.get("size", 0)),
        latency_s=figures.get("latency_one", 0) / 1e3,
        texts=rows,
        measures=[
            measure_pb2.Measure(name=name, value=value, unit=UNITS.get(name, ""))
            for name, value in figures.items()
        ],
    )


def metrics(figures: Mapping[str, float]) -> list[registry_pb2.Metric]:
    """Return the figures as a version's manifest has them."""
    return [metric(name, value, UNITS.get(name, "")) for name, value in figures.items()]
