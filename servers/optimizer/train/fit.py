"""The part of a job that computes: in the job's process, or in each of those of torchrun."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA: the same bits each time

import torch

from llmos.api.optimizer.v1 import jobs_pb2, process_pb2
from llmos.servers.optimizer.train.examples import Examples
from llmos.servers.optimizer.train.gate import Gate
from llmos.servers.optimizer.train.loop import Loop, Tell
from llmos.servers.optimizer.train.objectives import Answer, NextToken
from llmos.servers.optimizer.train.place import Place
from llmos.servers.optimizer.train.plan import Plan
from llmos.servers.optimizer.train.setup import Workshop
from llmos.servers.optimizer.train.table import write_json

MEASURES = "training.jsonl"


@dataclass(frozen=True)
class Outcome:
    """What a training came to; see State."""

    steps: int
    loss: float
    validation_loss: float  # NaN = there was no validation split
    seconds: float  # in steps, over all tries
    epsilon: float = 0.0
    validation_before: float = math.nan  # the source's loss on the same split; NaN = no source
    foretells: bool = False  # losses are of next tokens, so their exponential is a perplexity

    @classmethod
    def load(cls, work: Path) -> Outcome | None:
        """Return what an earlier process of the job came to, if one did."""
        path = work / "outcome.json"
        return cls(**json.loads(path.read_text())) if path.exists() else None


def fit(workshop: Workshop, gate: Gate, tell: Tell, threads: int) -> Outcome:
    """Train to the end and leave the results' files under `result/`, a folder for each.

    Goes on after the last checkpoint. Raises Stopped, and what the loop and the setup raise.
    """
    if done := Outcome.load(workshop.work):
        return done
    spec = workshop.spec
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Memory that nobody has written is read by nobody: filling it first costs time for nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    place = Place(shard=spec.distribution.shard)
    try:
        examples = Examples.load(workshop.work / "examples")
        setup = workshop.setup(examples)
        plan = Plan.of(spec.training, examples.train.rows, setup.rate, place.world)
        folder = workshop.work / "checkpoints"
        args = (
            *(setup.network, setup.objective, examples.train, examples.validation),
            *(plan, place, gate, folder, tell),
        )
        loop = _private(workshop, args) if _is_private(spec) else Loop(*args)
        loop.network.train()
        before = _before(workshop, loop)
        state = loop.run()
        whole = place.gather(setup.network) if spec.distribution.shard else {}
        outcome = Outcome(
            steps=state.step,
            loss=loop.last_loss,
            validation_loss=state.validation_loss,
            seconds=state.seconds,
            epsilon=loop.epsilon(),
            validation_before=before,
            foretells=isinstance(setup.objective, NextToken | Answer),
        )
        if place.first:
            if whole:  # the first process has all shards now; it writes a network of its own
                setup = workshop.setup(examples)
                Place.alone().scatter(whole, setup.network)
            _write(workshop.work, setup.network, setup.write, outcome)
        return outcome
    finally:
        place.leave()


def _before(workshop: Workshop, loop: Loop) -> float:
    """Return the loss of what is trained further, before its first step (kept over restarts)."""
    if workshop.kind == "train" or loop.validation is None:
        return math.nan
    kept = workshop.work / "before.json"
    if kept.exists():
        return float(json.loads(kept.read_text()))
    loss = loop.measure(loop.validation)
    if loop.place.first:
        write_json(kept, loss)
    return loss


def _is_private(spec: Any) -> bool:
    return "privacy" in spec.DESCRIPTOR.fields_by_name and spec.HasField("privacy")


def _private(workshop: Workshop, args: Any) -> Loop:
    from llmos.servers.optimizer.train import private

    return private.PrivateLoop(
        workshop.spec.privacy, private.secret(workshop.work / "secret"), *args
    )


def _write(work: Path, network: torch.nn.Module, write: Any, outcome: Outcome) -> None:
    network.cpu().eval()
    partial, result = work / "result.partial", work / "result"
    for folder in (partial, result):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir()
    write(partial)
    partial.replace(result)
    values = {k: v for k, v in outcome.__dict__.items()}
    write_json(work / "outcome.json", values)  # last: it says that all is there


def told(now: jobs_pb2.TrainingProgress) -> process_pb2.JobProgress:
    """Return where a training is as its job reports it: between a tenth and 95% of all."""
    share = now.step / max(1, now.steps)
    return process_pb2.JobProgress(training=now, progress=0.1 + 0.85 * share)


class Measures:
    """A line of JSON per measurement, for people and plots; what is repeated is written once."""

    def __init__(self, path: Path) -> None:
        """Go on after what is there."""
        self._path = path
        path.parent.mkdir(exist_ok=True)
        self._last = -1
        if path.exists():
            for line in path.read_text().splitlines():
                self._last = max(self._last, json.loads(line)["step"])

    def add(self, progress: Any) -> None:
        """Append where a training is."""
        if progress.step <= self._last:
            return
        self._last = progress.step
        names = ("step", "loss", "validation_loss", "learning_rate", "rate", "memory_bytes")
        line = {name: getattr(progress, name) for name in names}
        line = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in line.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
