"""The numbers of a training: a spec's, with what it leaves open filled in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.lib.errors import InvalidArgument

BATCH = 32


@dataclass(frozen=True)
class Plan:
    """Steps, and the learning rate at each."""

    spec: pb.Training
    rows: int
    batch: int
    epoch_steps: int
    steps: int
    learning_rate: float
    evaluate_steps: int

    @classmethod
    def of(cls, spec: pb.Training, rows: int, rate: float, world: int = 1) -> Plan:
        """Make the plan. rate: the default learning rate. Raises InvalidArgument BAD_SPEC."""
        batch = min(spec.batch or BATCH, rows)
        if batch < world:
            raise InvalidArgument(
                "BAD_SPEC",
                f"distribution.processes is {world}, more than the {batch} rows of a step; lower "
                "it or take a larger data set.",
            )
        epoch_steps = math.ceil(rows / batch)
        epochs = spec.epochs or (0 if spec.steps else 1)
        by_epochs = max(1, math.ceil(epochs * epoch_steps)) if epochs else spec.steps
        steps = min(by_epochs, spec.steps or by_epochs)
        return cls(
            spec=spec,
            rows=rows,
            batch=batch,
            epoch_steps=epoch_steps,
            steps=steps,
            learning_rate=spec.learning_rate or rate,
            evaluate_steps=spec.evaluate_steps or epoch_steps,
        )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, 0 the first."""
        warm = round(self.spec.warmup * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        if self.spec.schedule == pb.SCHEDULE_LINEAR:
            return self.learning_rate * (1 - done)
        if self.spec.schedule == pb.SCHEDULE_COSINE:
            return self.learning_rate * (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate
