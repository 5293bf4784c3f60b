"""The training loop: steps, measurements, checkpoints, and what stops it early.

Which rows a step takes, and every random number in it, follow from the seed and the step alone.
So a checkpoint needs weights, optimiser state and the step, and a training that was killed ends
with the same bits as one that was not. With several processes each takes a share of every step's
rows; gradients are of the mean over all of them, whatever the number of processes.
"""

from __future__ import annotations

import math
import resource
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.lib import failpoint
from llmos.lib.errors import Aborted, ResourceExhausted
from llmos.servers.optimizer.job.context import Stopped
from llmos.servers.optimizer.train import checkpoint
from llmos.servers.optimizer.train.gate import Gate
from llmos.servers.optimizer.train.objectives import Objective, by_length
from llmos.servers.optimizer.train.optimisers import decayed, make_optimizer, mixed
from llmos.servers.optimizer.train.place import Place
from llmos.servers.optimizer.train.plan import Plan
from llmos.servers.optimizer.train.table import Table, order

_CHECKPOINT_S = 30.0
_REPORT_S = 0.25
_RECENT = 20  # steps whose mean loss tells a diverging training
_MEASURED = 64  # rows of a part of a measurement
Tell = Callable[[jobs_pb2.TrainingProgress], None]


@dataclass
class State:
    """What a checkpoint holds besides tensors."""

    step: int = 0
    validation_loss: float = math.nan
    best_loss: float = math.inf
    worse: int = 0  # measurements since the best
    first_losses: list[float] = field(default_factory=list)
    last_losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    done: bool = False


class Loop:
    """Trains `network` to its plan's end; its weights are the result."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        table: Table,
        validation: Table | None,
        plan: Plan,
        place: Place,
        gate: Gate,
        folder: Path,
        tell: Tell,
    ) -> None:
        """folder: for checkpoints. tell: called with news, not for every step."""
        self.network = network
        self.objective, self.table, self.validation = objective, table, validation
        self.plan, self.place, self.gate, self.tell = plan, place, gate, tell
        self._file, self._best = folder / "checkpoint.safetensors", folder / "best.safetensors"
        self.wrapped = place.wrap(network)
        self.optimizer = make_optimizer(network, plan)
        self.state = State()
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self._losses: deque[float] = deque(maxlen=_RECENT)
        self._saved_at = self._told_at = time.monotonic()
        self._rate: deque[tuple[float, int]] = deque(maxlen=50)

    def run(self) -> State:
        """Train. Raises Stopped after a checkpoint; Aborted DIVERGED, ResourceExhausted
        OUT_OF_MEMORY.
        """
        self._resume()
        try:
            while self.state.step < self.plan.steps and not self.state.done:
                self.gate.wait()
                if self.gate.stopping:
                    self._save()
                    raise Stopped
                self._one()
        except (torch.OutOfMemoryError, MemoryError) as exc:
            raise self._no_memory() from exc
        except RuntimeError as exc:
            if "not enough memory" in str(exc) or "can't allocate memory" in str(exc):
                raise self._no_memory() from exc
            raise
        if self.plan.spec.patience and self._best.exists():
            tensors = checkpoint.load(self._best)[0] if self.place.first else {}
            self.place.scatter(tensors, self.network)
        if self.validation is not None and math.isnan(self.state.validation_loss):
            self.state.validation_loss = self.measure(self.validation)
        self._told_at = 0.0
        self._report(self.last_loss, self.state.step - 1)
        return self.state

    @property
    def last_loss(self) -> float:
        """Return the loss of the last step; NaN before the first."""
        return self._losses[-1] if self._losses else math.nan

    def step_rows(self, step: int) -> npt.NDArray[np.int64]:
        """Return the rows of a step, over all processes."""
        epoch, at = divmod(step, self.plan.epoch_steps)
        if self._order[0] != epoch:
            self._order = (epoch, order(self.table.rows, self.plan.spec.seed, epoch))
        rows, steps = self.table.rows, self.plan.epoch_steps
        return self._order[1][rows * at // steps : rows * (at + 1) // steps]

    def measure(self, table: Table) -> float:
        """Return the mean loss over a table."""
        self.wrapped.eval()
        total, count, world, rank = 0.0, 0, self.place.world, self.place.rank
        with torch.no_grad():
            size = _MEASURED * world
            for at in range(0, table.rows, size):
                rows = np.arange(at, min(at + size, table.rows))
                count += self.objective.count(table.take(rows))
                mine = rows[len(rows) * rank // world : len(rows) * (rank + 1) // world]
                if len(mine) or world > 1:  # all must call a sharded network as often
                    taken = table.take(mine if len(mine) else rows[:1])
                    loss = float(self.objective.loss(self.wrapped, taken, self.place.device))
                    total += loss if len(mine) else 0.0
        self.wrapped.train()
        return self.place.total(total) / max(1, count)

    def _one(self) -> None:
        step, spec, start = self.state.step, self.plan.spec, time.monotonic()
        rate = self.plan.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rows = self.step_rows(step)
        loss, count = self.compute(step, rows)
        self._check(loss, step)
        self.advance(step)
        self.state.step = step + 1
        self._losses.append(loss)
        if len(self.state.first_losses) < _RECENT:
            self.state.first_losses.append(loss)
        self.state.seconds += time.monotonic() - start
        self._rate.append((time.monotonic() - start, count))
        if self.validation is not None and (
            self.state.step % self.plan.evaluate_steps == 0 or self.state.step == self.plan.steps
        ):
            self._evaluate(self.validation)
        self._report(loss, step)
        every = spec.checkpoint_steps
        due = self.state.step % every == 0 if every else False
        # Gathering is a matter of all processes, so only a count of steps may decide there.
        if not every and self.place.world > 1:
            due = self.state.step % max(1, self.plan.steps // 20) == 0
        elif not every:
            due = time.monotonic() - self._saved_at > _CHECKPOINT_S
        if due or self.state.done:
            self._save()
        failpoint.hit(f"train.step.{self.place.rank}")

    def compute(self, step: int, rows: npt.NDArray[np.int64]) -> tuple[float, int]:
        """Leave the gradients of a step's mean loss; return that loss, and what it counts."""
        spec, place = self.plan.spec, self.place
        place.seed(mixed(spec.seed, step, place.rank))
        self.optimizer.zero_grad(set_to_none=True)
        all_rows = self.table.take(rows)
        count = max(1, self.objective.count(all_rows))
        mine = slice(
            len(rows) * place.rank // place.world, len(rows) * (place.rank + 1) // place.world
        )
        own = by_length({name: array[mine] for name, array in all_rows.items()})
        size = mine.stop - mine.start
        parts = min(spec.accumulate or 1, size)
        total = 0.0
        for index in range(parts):
            part = slice(size * index // parts, size * (index + 1) // parts)
            with place.part(self.wrapped, last=index == parts - 1), self.autocast():
                loss = self.objective.loss(
                    self.wrapped, {n: a[part] for n, a in own.items()}, place.device
                )
                (loss * (place.world / count)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return place.total(total) / count, count

    def autocast(self) -> Any:
        """Return the context that sets the precision."""
        low = self.plan.spec.precision == pb.PRECISION_BFLOAT16
        return torch.autocast(self.place.device.type, torch.bfloat16, enabled=low)

    def advance(self, step: int) -> None:
        """Change the weights by the gradients."""
        spec = self.plan.spec
        if spec.l1:
            for p in decayed(self.network):
                if p.grad is not None:
                    p.grad.add_(p.detach().sign(), alpha=spec.l1)
        if spec.max_gradient_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), spec.max_gradient_norm)
        self.optimizer.step()

    def _check(self, loss: float, step: int) -> None:
        first, recent = self.state.first_losses, self._losses
        cure = "lower training.learning_rate, set training.max_gradient_norm, or check the data"
        if not math.isfinite(loss):
            raise Aborted("DIVERGED", f"The loss is {loss} at step {step + 1}; {cure}.")
        if len(first) == len(recent) == _RECENT and step >= 2 * _RECENT:
            begin, now = sum(first) / _RECENT, sum(recent) / _RECENT
            if now > 10 * begin + 1e-6:
                raise Aborted(
                    "DIVERGED",
                    f"It diverges: at step {step + 1} the mean loss of {_RECENT} steps is "
                    f"{now:.4g}, at the beginning it was {begin:.4g}; {cure}.",
                )

    def _no_memory(self) -> ResourceExhausted:
        return ResourceExhausted(
            "OUT_OF_MEMORY",
            f"Out of memory at step {self.state.step + 1} on {self.place.device}; lower "
            "training.batch, raise training.accumulate, or shorten data.tokens.",
        )

    def _evaluate(self, table: Table) -> None:
        state = self.state
        state.validation_loss = self.measure(table)
        if state.validation_loss < state.best_loss:
            state.best_loss, state.worse = state.validation_loss, 0
            if self.plan.spec.patience:
                tensors = self.place.gather(self.network)
                if self.place.first:
                    checkpoint.save(self._best, tensors, {"step": state.step})
        else:
            state.worse += 1
            state.done = 0 < self.plan.spec.patience <= state.worse
        self._told_at = 0.0

    def _report(self, loss: float, step: int) -> None:
        now = time.monotonic()
        if not self.place.first or now - self._told_at < _REPORT_S:
            return
        self._told_at = now
        seconds = sum(s for s, _ in self._rate)
        pace = seconds / len(self._rate) if self._rate else 0.0
        if self.place.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self.place.device)
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        self.tell(
            jobs_pb2.TrainingProgress(
                step=self.state.step,
                steps=self.plan.steps,
                loss=loss,
                validation_loss=self.state.validation_loss,
                learning_rate=self.plan.rate(max(0, step)),
                rate=sum(c for _, c in self._rate) / seconds if seconds else 0.0,
                rate_unit=self.objective.unit,
                eta_s=pace * (self.plan.steps - self.state.step),
                memory_bytes=memory,
                yielded_s=self.gate.waited_s,
                epsilon=self.epsilon(),
            )
        )

    def epsilon(self) -> float:
        """Return the privacy that the steps so far have cost; 0 without privacy."""
        return 0.0

    def _save(self) -> None:
        self.state.last_losses = list(self._losses)
        tensors = self.place.gather(self.network, self.optimizer)
        if self.place.first:
            checkpoint.save(self._file, tensors, asdict(self.state))
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        if not self._file.exists():
            return
        tensors, state = checkpoint.load(self._file)
        self.state = State(**state)
        self._losses.extend(self.state.last_losses)
        self.place.scatter(tensors if self.place.first else {}, self.network, self.optimizer)
