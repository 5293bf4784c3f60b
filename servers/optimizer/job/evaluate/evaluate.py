"""The work of the kind evaluate."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from google.protobuf import json_format

from llmos.api.optimizer.v1 import evaluate_pb2, measure_pb2
from llmos.lib.errors import FailedPrecondition, LLMOSError, Unimplemented
from llmos.servers.optimizer.job import figures, rows
from llmos.servers.optimizer.job.context import JobContext
from llmos.servers.optimizer.job.evaluate import quality, report, speed
from llmos.servers.optimizer.job.models import networks
from llmos.servers.optimizer.job.models.subject import Subject

_MANY_TOKENS = 32  # texts of a language model that are measured: each token has a row of logits


class Evaluate:
    """One run; each version's figures are kept as soon as they are known."""

    def __init__(self, context: JobContext) -> None:
        """Prepare."""
        self._context = context
        self._spec: evaluate_pb2.Evaluate = context.spec
        self._vectors: list[Any] = []

    async def run(self) -> None:
        """Do it. Raises FailedPrecondition GATE_CLOSED, InvalidArgument BAD_SPEC."""
        context, spec = self._context, self._spec
        context.tell("reads the data", 0.02)
        given = context.launch.datasets
        beside = [spec.targets] if spec.targets else []
        labelled = spec.labels or bool(given and await self._has_labels(given[0]))
        if labelled:
            beside.append(spec.labels)
        self._rows = await rows.read(
            context.channel("storage"), spec.data, given[0] if given else "", beside=beside
        )
        label_column = spec.labels or self._rows.label_column
        self._labels = [str(v) for v in self._rows.columns[label_column]] if labelled else []
        found = evaluate_pb2.Report(data=self._where(), rows=len(self._rows.inputs))
        for index, ref in enumerate(context.launch.sources):
            context.tell(f"measures {ref}", 0.05 + 0.85 * index / len(context.launch.sources))
            found.versions.append(await self._version(ref, index))
        await asyncio.to_thread(report.write, found, context.artifacts)
        self._check(found)

    async def _has_labels(self, ref: str) -> bool:
        if self._spec.targets:
            return False
        about = await rows.about(self._context.channel("storage"), ref)
        return bool(about.label_column)

    def _where(self) -> str:
        return f"{self._rows.ref} {self._rows.split}".strip()

    async def _version(self, ref: str, index: int) -> evaluate_pb2.Evaluated:
        kept = self._context.work / f"version-{index}.json"
        original = index == 0
        if kept.exists():
            found = json_format.Parse(kept.read_text(), evaluate_pb2.Evaluated())
            vectors = self._context.work / "vectors.npy"
            if original and vectors.exists():
                self._vectors = list(np.load(vectors))
        else:
            version = await self._context.storage.version(ref)
            folder = self._context.work / f"model-{index}"
            await self._context.storage.lay_out(version, folder)
            subject = await asyncio.to_thread(Subject, version, folder)
            found = await asyncio.to_thread(self._quality, subject, original)
            if not self._spec.skip_speed:
                await self._speed(subject, found)
            temporary = kept.with_suffix(".tmp")
            temporary.write_text(json_format.MessageToJson(found))
            temporary.replace(kept)
        values = {m.name: m.value for m in found.measures}
        label = "original" if original else f"version {index + 1}"
        self._context.compared(figures.comparison(label, ref, values, len(self._rows.inputs)))
        return found

    def _quality(self, subject: Subject, original: bool) -> evaluate_pb2.Evaluated:
        found = evaluate_pb2.Evaluated(ref=subject.ref)
        inputs = list(self._rows.inputs)
        threads = self._context.launch.threads or 1
        values: dict[str, float]
        if self._spec.targets:
            said = self._generate(subject, inputs, threads)
            wanted = [str(v) for v in self._rows.columns[self._spec.targets]]
            values = quality.generation(said, wanted)
        elif subject.task == "generate":
            batches = list(subject.batches(inputs[:_MANY_TOKENS], 4))
            network = subject.network(threads)
            values = figures.perplexity(subject, network, batches)
        elif subject.task == "embed":
            vectors = figures.in_order(subject, subject.network(threads), inputs)
            if original:
                self._vectors = list(vectors)
                np.save(self._context.work / "vectors.npy", vectors)
            cosines = np.sum(vectors.astype(np.float64) * np.stack(self._vectors), axis=1)
            values = {
                "cosine_min": float(min(cosines.min(), 1.0)),
                "cosine_mean": float(min(cosines.mean(), 1.0)),
            }
        else:
            if not self._labels:
                raise FailedPrecondition(
                    "WRONG_DATA",
                    f"{subject.ref} classifies, and the data has no labels; set evaluate.labels.",
                )
            scores = figures.in_order(subject, subject.network(threads), inputs)
            names = quality.class_names(subject, scores.shape[1], self._labels)
            values, matrix = quality.classification(
                scores, self._labels, names, self._spec.positive
            )
            found.classes.extend(names)
            found.confusion.extend(matrix.flatten().tolist())
        values["size"] = float(subject.size_bytes)
        _add(found, values)
        return found

    def _generate(self, subject: Subject, inputs: list[str], threads: int) -> list[str]:
        from llmos.servers.optimizer.job.evaluate import answers

        spec = self._spec
        texts = [spec.prompt + text for text in inputs]
        limit, beams = spec.max_tokens or 64, spec.beams or 1
        return answers.generate(subject, texts, limit, threads, beams)

    async def _speed(self, subject: Subject, found: evaluate_pb2.Evaluated) -> None:
        """Measure in the execution server, else here: it has no engine, or there is none."""
        try:
            if not speed.servable(subject):
                raise Unimplemented("NO_ENGINE", "It is measured in this process.")
            channel = self._context.channel("execution")
            _add(found, await speed.measure(channel, subject, self._rows.inputs))
        except LLMOSError as exc:
            self._context.tell(f"measures {subject.ref} in this process: {exc.message}")
            if subject.task != "translate":
                value = await asyncio.to_thread(self._latency, subject)
                _add(found, {"latency_one": value})

    def _latency(self, subject: Subject) -> float:
        batches = list(subject.batches(list(self._rows.inputs[:64])))
        return figures.latency_ms(networks.load(subject, 1), batches)

    def _check(self, found: evaluate_pb2.Report) -> None:
        original = {m.name: m.value for m in found.versions[0].measures}
        for version in found.versions[1:]:
            values = {m.name: m.value for m in version.measures}
            if why := figures.closed(self._spec.gates, values, original):
                raise FailedPrecondition("GATE_CLOSED", f"{version.ref}: {why}.")


def _add(found: evaluate_pb2.Evaluated, values: dict[str, float]) -> None:
    for name, value in values.items():
        unit = figures.UNITS.get(name, "")
        found.measures.append(measure_pb2.Measure(name=name, value=value, unit=unit))
