"""A job's source with what it gives on the data: what every product of the job is held against."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmos.api.optimizer.v1 import compress_pb2, measure_pb2
from llmos.servers.optimizer.job import figures, rows
from llmos.servers.optimizer.job.context import JobContext
from llmos.servers.optimizer.job.models import networks
from llmos.servers.optimizer.job.models.subject import Batch, Network, Subject

_TOKENS_AT_ONCE = 24  # rows of a language model that are compared: each token has a row of logits


class Against:
    """The source, loaded and run once; `original` are its figures."""

    def __init__(self, context: JobContext, data: compress_pb2.Data) -> None:
        """Do nothing yet."""
        self.context, self.data = context, data
        self.original: dict[str, float] = {}
        self.layers: list[measure_pb2.LayerError] = []  # of the product, when they were measured
        self._outputs: list[Any] = []

    async def open(self) -> Subject:
        """Fetch the source and the rows, run the source on them, tell its figures.

        Raises what storage says, InvalidArgument BAD_MODEL_FILE, FailedPrecondition WRONG_DATA.
        """
        context = self.context
        context.tell("fetches the source", 0.02)
        version = await context.storage.version(context.launch.sources[0])
        folder = context.work / "source"
        await context.storage.lay_out(version, folder)
        self.subject = await asyncio.to_thread(Subject, version, folder)
        self.rows = await self.read()
        context.tell("measures the source", 0.08)
        await asyncio.to_thread(self._measure)
        context.compared(self._comparison("original", self.subject.ref, self.original))
        return self.subject

    async def read(self, *, learn: bool = False) -> rows.Rows:
        """Return rows to measure on, or to learn from."""
        datasets = self.context.launch.datasets
        ref = datasets[0] if datasets else ""
        return await rows.read(self.context.channel("storage"), self.data, ref, learn=learn)

    @property
    def threads(self) -> int:
        """Return how many threads may compute."""
        return self.context.launch.threads or 1

    def batches(self, inputs: Sequence[Any] | None = None) -> list[Batch]:
        """Return the rows as batches."""
        given = self.rows.inputs if inputs is None else inputs
        if self.subject.task == "generate":
            return list(self.subject.batches(given[:_TOKENS_AT_ONCE], 4))
        return list(self.subject.batches(given))

    def _measure(self) -> None:
        subject, batches = self.subject, self.batches()
        network = subject.network(self.threads)
        self._outputs = figures.outputs(subject, network, batches)
        self.original = figures.compare(subject, network, batches, self._outputs)
        self.original |= {
            "size": float(subject.size_bytes),
            "latency_one": figures.latency_ms(_alone(subject, network), batches),
        }

    def compare(self, network: Network, subject: Subject | None = None) -> dict[str, float]:
        """Return a network's figures against the source."""
        return figures.compare(subject or self.subject, network, self.batches(), self._outputs)

    def finish(
        self, label: str, found: dict[str, float], files: Sequence[Path], alone: Network
    ) -> dict[str, float]:
        """Add size and latency to the figures of a product, and tell them."""
        found = found | {
            "size": float(sum(path.stat().st_size for path in files)),
            "latency_one": figures.latency_ms(alone, self.batches()),
        }
        self.context.compared(self._comparison(label, "", found))
        return found

    def gates(
        self, asked: Sequence[measure_pb2.Gate], usual: Sequence[measure_pb2.Gate]
    ) -> list[measure_pb2.Gate]:
        """Return the gates asked for, else those usual ones whose measure there is."""
        return list(asked) or [gate for gate in usual if gate.measure in self.original]

    async def register(
        self,
        label: str,
        found: dict[str, float],
        files: dict[str, Path | str],
        name: str,
        step: str,
    ) -> str:
        """Register a product beside the source's other files, and tell its figures."""
        ref = await self.context.register(
            {**files, **{n: d for n, d in self.subject.beside.items() if n not in files}},
            step=step,
            parents=[self.subject.ref],
            datasets=[self.rows.ref] if self.rows.ref else [],
            metrics=figures.metrics(found),
            name=name,
        )
        self.context.compared(self._comparison(label, ref, found))
        return ref

    def _comparison(self, label: str, ref: str, found: dict[str, float]) -> Any:
        comparison = figures.comparison(label, ref, found, len(self.rows.inputs))
        comparison.layers.extend(self.layers if label != "original" else [])
        return comparison


def _alone(subject: Subject, network: Network) -> Network:
    """Return the network with one thread; a torch module is not loaded twice."""
    return subject.network(1) if subject.format == "onnx" else networks.alone(network)
