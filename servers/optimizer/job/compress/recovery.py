"""Recovery after pruning: the pruned network learns to answer as the whole one did."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from llmos.lib import failpoint
from llmos.lib.errors import FailedPrecondition
from llmos.servers.optimizer.job.compress import sparsity
from llmos.servers.optimizer.job.context import JobContext
from llmos.servers.optimizer.job.models.subject import Feeds
from llmos.servers.optimizer.job.models.torch_folder import Module

_CHECKPOINT_STEPS = 10


@dataclass(frozen=True)
class Settings:
    """How to recover."""

    steps: int
    rate: float
    batch: int
    seed: int
    threads: int


def recover(
    module: Module, teacher: Module, rows: Sequence[Feeds], settings: Settings, context: JobContext
) -> None:
    """Train in place, AdamW, with zeros kept; goes on from the checkpoint in the working folder.

    The batch of a step is a function of seed and step, and checkpoints have the optimiser's state,
    so a run that was broken ends with the same bits. Raises FailedPrecondition DIVERGED.
    """
    torch.set_num_threads(settings.threads)
    masks = {name: part.weight != 0 for name, part in sparsity.layers(module)}
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.rate, weight_decay=0.0)
    done = _load(context.work, parameters, optimizer)
    flat = [_row(feeds, i) for feeds in rows for i in range(len(next(iter(feeds.values()))))]
    module.eval()  # dropout off: the teacher has none
    for step in range(done, settings.steps):
        feeds = _batch(flat, settings, step)
        inputs = [torch.from_numpy(feeds[name]) for name in module.names]
        with torch.no_grad():
            wanted = teacher(*inputs)
        loss = _loss(module, module(*inputs), wanted, feeds)
        if not math.isfinite(loss.item()):
            raise FailedPrecondition(
                "DIVERGED",
                f"The loss of the recovery is {loss.item()} at step {step + 1}; set a smaller "
                "prune.learning_rate.",
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for name, part in sparsity.layers(module):
                part.weight.mul_(masks[name])  # type: ignore[operator]
        if (step + 1) % _CHECKPOINT_STEPS == 0 or step + 1 == settings.steps:
            _save(context.work, parameters, optimizer, step + 1)
            context.tell(
                f"recovers: step {step + 1} of {settings.steps}, loss {loss.item():.5f}",
                0.25 + 0.55 * (step + 1) / settings.steps,
            )
        failpoint.hit("recovery.step")


def _loss(module: Module, out: torch.Tensor, wanted: torch.Tensor, feeds: Feeds) -> torch.Tensor:
    """Return the divergence of distributions, or the squared difference of vectors."""
    if module.task == "classify":
        return functional.kl_div(
            out.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean"
        )
    if "attention_mask" not in feeds:
        return functional.mse_loss(out, wanted)
    real = torch.from_numpy(feeds["attention_mask"]) > 0
    if module.task == "generate":
        return functional.kl_div(
            out[real].log_softmax(-1),
            wanted[real].log_softmax(-1),
            log_target=True,
            reduction="batchmean",
        )
    return functional.mse_loss(out[real], wanted[real])


def _row(feeds: Feeds, index: int) -> Feeds:
    if "attention_mask" not in feeds:
        return {name: array[index] for name, array in feeds.items()}
    length = int(feeds["attention_mask"][index].sum())
    return {name: array[index][:length] for name, array in feeds.items()}


def _batch(rows: Sequence[Feeds], settings: Settings, step: int) -> Feeds:
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    chosen = torch.randint(len(rows), (settings.batch,), generator=generator).tolist()
    names = rows[0].keys()
    import numpy as np

    out: dict[str, Any] = {}
    for name in names:
        some = [rows[i][name] for i in chosen]
        if "attention_mask" in names:
            longest = max(len(row) for row in some)
            some = [np.pad(row, (0, longest - len(row))) for row in some]
        out[name] = np.stack(some)
    return out


def _save(
    work: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, step: int
) -> None:
    tensors = {f"p.{name}": p.detach() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value.reshape(1) if value.dim() == 0 else value
    temporary = work / "recovery.tmp"
    save_file(
        {k: v.clone().contiguous() for k, v in tensors.items()},
        temporary,
        metadata={"about": json.dumps({"step": step})},
    )
    temporary.replace(work / "recovery.safetensors")


def _load(work: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW) -> int:
    from safetensors import safe_open

    path = work / "recovery.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        step = int(json.loads(file.metadata()["about"])["step"])
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"p.{name}"])
            if f"step.{name}" in tensors:
                optimizer.state[parameter] = {
                    "step": tensors[f"step.{name}"].reshape(()),
                    "exp_avg": tensors[f"exp_avg.{name}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
                }
    return step
