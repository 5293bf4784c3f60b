"""Private training: DP-SGD (Abadi et al. 2016) by Opacus, accounted for by dp-accounting.

A step's rows are a Poisson sample, each row's gradient is cut to a length, and Gaussian noise is
added to their sum. Sample and noise of a step follow from a secret of the job and the step: a step
that is repeated after a crash gives out the same numbers again, which costs no more privacy. The
secret is made by the system's generator and goes when the job ends.
"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import numpy.typing as npt
import torch
from dp_accounting import rdp
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.lib.errors import InvalidArgument
from llmos.servers.optimizer.train.loop import Loop
from llmos.servers.optimizer.train.plan import Plan

# Of the Renyi divergence. Those that are no integers cost the most time and matter for large
# epsilons only.
_ORDERS = [1.1, 1.25, 1.5, 1.75, 2.5, 3.5, *range(2, 64), 80, 96, 128, 192, 256, 512]
_TOLD = 20  # times that a job's progress computes its epsilon anew


def delta_of(spec: pb.Privacy, rows: int) -> float:
    """Return delta, by default a tenth of a row's share."""
    return spec.delta or 0.1 / rows


def spent(noise: float, sample: float, steps: int, delta: float) -> float:
    """Return the epsilon of so many steps (Renyi accountant, Mironov et al. 2019)."""
    if not steps:
        return 0.0
    accountant = rdp.RdpAccountant(_ORDERS)
    accountant.compose(_event(noise, sample, steps))
    return float(accountant.get_epsilon(delta))


def noise_for(epsilon: float, sample: float, steps: int, delta: float) -> float:
    """Return the noise multiplier with which so many steps cost at most epsilon."""
    found = dp_accounting.calibrate_dp_mechanism(
        lambda: rdp.RdpAccountant(_ORDERS),
        lambda noise: _event(noise, sample, steps),
        epsilon,
        delta,
        tol=1e-4,
    )
    while spent(found, sample, steps, delta) > epsilon:  # it stops within tol on either side
        found += 1e-4
    return float(found)


def _event(noise: float, sample: float, steps: int) -> dp_accounting.DpEvent:
    step = dp_accounting.PoissonSampledDpEvent(sample, dp_accounting.GaussianDpEvent(noise))
    return dp_accounting.SelfComposedDpEvent(step, steps)


def secret(path: Path) -> bytes:
    """Return the job's secret, made at its first start."""
    if not path.exists():
        temporary = path.with_name(path.name + ".tmp")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(os.urandom(32))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    return path.read_bytes()


def sigma(spec: pb.Privacy, plan: Plan) -> float:
    """Return the noise multiplier of a plan."""
    sample = plan.batch / plan.rows
    return noise_for(spec.epsilon, sample, plan.steps, delta_of(spec, plan.rows))


class PrivateLoop(Loop):
    """A loop whose steps are private."""

    def __init__(self, privacy: pb.Privacy, secret: bytes, *args: Any) -> None:
        """Take Loop's arguments. Raises InvalidArgument BAD_SPEC for a network that mixes rows."""
        super().__init__(*args)
        errors = ModuleValidator.validate(self.network, strict=False)
        if errors:
            raise InvalidArgument(
                "BAD_SPEC", f"privacy cannot be kept by this network: {errors[0]}"
            )
        self._spec, self._secret = privacy, secret
        self._known: dict[int, float] = {}  # epsilon by steps
        self.noise = sigma(privacy, self.plan)
        self.wrapped = GradSampleModule(self.network, loss_reduction="sum")
        self.wrapped.train()
        self._private = DPOptimizer(
            self.optimizer,
            noise_multiplier=self.noise,
            max_grad_norm=privacy.max_gradient_norm or 1.0,
            expected_batch_size=self.plan.batch,
            loss_reduction="mean",  # what is summed here is divided by the expected size there
            generator=torch.Generator(self.place.device),
        )

    def step_rows(self, step: int) -> npt.NDArray[np.int64]:
        """Return each row with the probability of the sample."""
        draw = np.random.default_rng(self._seed(step, b"rows")).random(self.plan.rows)
        return np.flatnonzero(draw < self.plan.batch / self.plan.rows)

    def compute(self, step: int, rows: npt.NDArray[np.int64]) -> tuple[float, int]:
        """Leave the noisy gradients' parts; return the rows' mean loss."""
        self.place.seed(self._seed(step, b"dropout") >> 1)
        self._private.zero_grad(set_to_none=True)
        if not len(rows):  # a sample may be empty: then the step is noise alone
            for p in self._private.params:
                p.grad_sample = torch.zeros((0, *p.shape), device=p.device)
            return self._losses[-1] if self._losses else 0.0, 0
        taken = self.table.take(rows)
        total, parts = 0.0, min(self.plan.spec.accumulate or 1, len(rows))
        for index in range(parts):
            part = slice(len(rows) * index // parts, len(rows) * (index + 1) // parts)
            if index:
                self._private.signal_skip_step(do_skip=True)
                self._private.step()
                self._private.zero_grad(set_to_none=True)
            with self.autocast():
                loss = self.objective.loss(
                    self.wrapped, {n: a[part] for n, a in taken.items()}, self.place.device
                )
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        count = self.objective.count(taken)
        return total / max(1, count), count

    def advance(self, step: int) -> None:
        """Cut, add noise, and change the weights."""
        self._private.generator.manual_seed(self._seed(step, b"noise") >> 1)
        self._private.step()

    def epsilon(self) -> float:
        """Return what the steps so far have cost, or a little more: not each step is computed."""
        plan = self.plan
        every = max(1, plan.steps // _TOLD)
        step = min(plan.steps, math.ceil(self.state.step / every) * every)
        if self.state.done:  # it stopped early, here
            step = self.state.step
        if step not in self._known:
            delta = delta_of(self._spec, plan.rows)
            self._known[step] = spent(self.noise, plan.batch / plan.rows, step, delta)
        return self._known[step]

    def _seed(self, step: int, use: bytes) -> int:
        digest = hashlib.sha256(self._secret + step.to_bytes(8, "little") + use).digest()
        return int.from_bytes(digest[:8], "little")
