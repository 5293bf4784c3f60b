"""What a training step of a job costs beside a bare loop, and in two processes beside one."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

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
BATCH, TOKENS = 8, 64
WARM, STEPS = 4, 60
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


def bare(work: Path) -> Callable[[], None]:
    """Return a step of a loop as one writes it by hand: all data in memory."""
    examples = Examples.load(work / "examples")
    network = Workshop("train", train(1), work, []).setup(examples).network
    ids = torch.from_numpy(examples.train.arrays["ids"].astype("int64"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    network.train()

    def step() -> None:
        some = ids[torch.randint(len(ids), (BATCH,))]
        out = network(input_ids=some[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), some[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


class Turns(Gate):
    """A job's gate that makes a bare step before each of the job's: both meet the same machine."""

    def __init__(self, folder: Path, step: Callable[[], None]) -> None:
        super().__init__(folder, threading.Event())
        self._step = step
        self.bare: list[Took] = []
        self.job: list[Took] = []
        self._began: Took | None = None

    def wait(self) -> None:
        if self._began:
            self.job.append(since(self._began))
        torch.use_deterministic_algorithms(False)
        began = now()
        self._step()
        self.bare.append(since(began))
        torch.use_deterministic_algorithms(True, warn_only=True)
        self._began = now()
        super().wait()


class Took(NamedTuple):
    """Seconds: of the clock, and of processors by all threads."""

    wall: float
    cpu: float


def now() -> Took:
    """Return where the clocks are."""
    return Took(time.perf_counter(), time.process_time())


def since(began: Took) -> Took:
    """Return what has gone by."""
    return Took(*(b - a for a, b in zip(began, now(), strict=True)))


def compare(work: Path, folder: Path) -> dict[str, Any]:
    """Return seconds a step: bare, and a job's with its gate, reports and measurements on disk.

    The overhead is the median difference of a job's step and the bare one right before it, so that
    what the machine does to both drops out; `_cpu` is the same in processor time of all threads,
    `_spread` the quartiles of the pairs.
    """
    folder.mkdir()
    for name in ("examples", "tokenizer"):
        (folder / name).symlink_to(work / name)
    report, measures = Report(folder / "progress"), Measures(folder / "artifacts" / "m.jsonl")

    def tell(now: jobs_pb2.TrainingProgress) -> None:
        measures.add(now)
        report.send(process_pb2.JobProgress(training=now, progress=now.step / now.steps))

    torch.set_num_threads(THREADS)
    turns = Turns(folder, bare(work))
    fit(Workshop("train", train(WARM + STEPS), folder, []), turns, tell, THREADS)
    report.close()
    pairs = list(zip(turns.bare, turns.job, strict=False))[WARM:]
    bare_s = median(bare.wall for bare, _ in pairs)
    more_s = median(job.wall - bare.wall for bare, job in pairs)
    return {
        "bare_step_s": bare_s,
        "job_step_s": bare_s + more_s,
        "step_overhead": more_s / bare_s,
        "step_overhead_cpu": median(job.cpu - bare.cpu for bare, job in pairs)
        / median(bare.cpu for bare, _ in pairs),
        "step_overhead_spread": list(quantiles((j.wall / b.wall - 1 for b, j in pairs), n=4)),
    }


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
        found: dict[str, Any] = compare(first.folder.work, folder / "job")
        print(f"steps: {found}", file=sys.stderr)
        one, two = [await _rate(models, count) for count in (1, 2)]
    return {
        **found,
        "one_process_tokens_per_s": one,
        "two_processes_tokens_per_s": two,
        "two_processes_to_one": two / one,
    }
