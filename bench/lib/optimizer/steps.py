"""What a training step of a job costs beside a bare loop, and in two processes beside one."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from job_world import World, world

from llmos.api.optimizer.v1 import jobs_pb2, process_pb2
from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.servers.optimizer.folder import Report
from llmos.servers.optimizer.job import corpus
from llmos.servers.optimizer.train.examples import Examples
from llmos.servers.optimizer.train.fit import Measures, fit
from llmos.servers.optimizer.train.gate import Gate
from llmos.servers.optimizer.train.setup import Workshop

THREADS = 2
BATCH, TOKENS = 16, 64
WARM, STEPS = 4, 24
ROUNDS = 3
ROWS = [{"text": text} for text in corpus.texts(2000)]


def train(steps: int, processes: int = 1) -> pb.Train:
    """Return a decoder of 4 layers, 256 wide, that learns to continue the reference manual."""
    return pb.Train(
        name="scribe",
        data=pb.TrainingData(dataset="manual", tokens=TOKENS, vocabulary=2048),
        decoder=pb.Transformer(layers=4, width=256, heads=8),
        training=pb.Training(steps=steps, batch=BATCH),
        distribution=pb.Distribution(processes=processes),
    )


def bare(work: Path) -> float:
    """Return seconds a step of a loop as one writes it by hand: all data in memory."""
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(THREADS)
    examples = Examples.load(work / "examples")
    network = Workshop("train", train(1), work, []).setup(examples).network
    ids = torch.from_numpy(examples.train.arrays["ids"].astype("int64"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    network.train()
    start = 0.0
    for step in range(WARM + STEPS):
        if step == WARM:
            start = time.perf_counter()
        some = ids[torch.randint(len(ids), (BATCH,))]
        out = network(input_ids=some[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), some[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()
    return (time.perf_counter() - start) / STEPS


def job(work: Path, folder: Path) -> float:
    """Return seconds a step of a job's loop: with its gate, reports, measurements on disk."""
    folder.mkdir()
    for name in ("examples", "tokenizer"):
        (folder / name).symlink_to(work / name)
    report, measures = Report(folder / "progress"), Measures(folder / "artifacts" / "m.jsonl")
    told: list[tuple[int, float]] = []

    def tell(now: jobs_pb2.TrainingProgress) -> None:
        measures.add(now)
        report.send(process_pb2.JobProgress(training=now, progress=now.step / now.steps))
        told.append((now.step, time.perf_counter()))

    fit(
        Workshop("train", train(WARM + STEPS), folder, []),
        Gate(folder, threading.Event()),
        tell,
        THREADS,
    )
    report.close()
    first = next((t for t in told if t[0] >= WARM), told[0])
    last = told[-1]
    return (last[1] - first[1]) / (last[0] - first[0])


async def _rate(models: World, processes: int) -> float:
    """Return tokens per second of a job in so many processes on the same cores."""
    spec = jobs_pb2.JobSpec(train=train(STEPS, processes))
    done = await models.run(spec, threads=THREADS)
    version = await models.version(done.results[0])
    took = next(m.value for m in version.metrics if m.name == "train_time")
    return STEPS * BATCH * TOKENS / took


async def measure(folder: Path) -> dict[str, Any]:
    """Return both comparisons."""
    folder.mkdir()
    async with world(folder) as models:
        await models.import_rows("manual", {"train": ROWS})
        first = await models.run(jobs_pb2.JobSpec(train=train(1)), id="first")
        assert first.folder is not None
        overheads, seconds = [], []
        for turn in range(ROUNDS):
            # each way round as often: what runs second finds a warmer machine
            ways = ["bare", "job"] if turn % 2 else ["job", "bare"]
            took = {}
            for way in ways:
                work = first.folder.work
                took[way] = bare(work) if way == "bare" else job(work, folder / f"job{turn}")
            overheads.append(took["job"] / took["bare"] - 1)
            seconds.append(took)
            print(f"steps: {took}", file=sys.stderr)
        pairs = []
        for _ in range(2):
            pairs.append([await _rate(models, count) for count in (1, 2)])
            print(f"tokens/s in 1 and 2 processes: {pairs[-1]}", file=sys.stderr)
    return {
        "step_overhead": statistics.median(overheads),
        "bare_step_s": statistics.median(s["bare"] for s in seconds),
        "job_step_s": statistics.median(s["job"] for s in seconds),
        "one_process_tokens_per_s": statistics.median(p[0] for p in pairs),
        "two_processes_tokens_per_s": statistics.median(p[1] for p in pairs),
        "two_processes_to_one": statistics.median(p[1] / p[0] for p in pairs),
    }
