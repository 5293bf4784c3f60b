"""The work of the kind prune: take weights out, let the rest recover, compare, register."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.servers.optimizer.job import figures
from llmos.servers.optimizer.job.against import Against
from llmos.servers.optimizer.job.context import JobContext
from llmos.servers.optimizer.job.models import networks
from llmos.servers.optimizer.job.models.subject import Subject

_LABELS = {
    pb.PRUNE_METHOD_MAGNITUDE: "magnitude",
    pb.PRUNE_METHOD_STRUCTURED: "structured",
    pb.PRUNE_METHOD_TWO_OF_FOUR: "2of4",
}


class Prune:
    """One run; the recovery goes on from its last checkpoint."""

    def __init__(self, context: JobContext) -> None:
        """Prepare."""
        self._context = context
        self._spec: pb.Prune = context.spec
        self._method = self._spec.method or pb.PRUNE_METHOD_MAGNITUDE
        self._label = _LABELS[self._method]

    async def run(self) -> None:
        """Do it. Raises FailedPrecondition TOO_FAR, DIVERGED, NOT_PRUNABLE."""
        against = Against(self._context, self._spec.data)
        subject = await against.open()
        learned = []
        if self._spec.recovery_steps:
            learned = list((await against.read(learn=True)).inputs)
        target = self._context.work / "pruned"
        found, files = await asyncio.to_thread(self._work, against, subject, target, learned)
        why = figures.closed(self._spec.gates, found, against.original)
        if why:
            raise figures.too_far(f"The pruned version of {subject.ref}", why)
        self._context.tell("registers the pruned version", 0.95)
        await against.register(
            f"pruned-{self._label}", found, files, self._spec.name, f"prune-{self._label}"
        )

    def _work(
        self, against: Against, subject: Subject, target: Path, learned: list[Any]
    ) -> tuple[dict[str, float], dict[str, Path | str]]:
        from llmos.servers.optimizer.job.compress import recovery, sparsity, structure
        from llmos.servers.optimizer.job.models import torch_folder

        self._context.tell("prunes", 0.2)
        module = networks.module(subject)
        before = sum(p.numel() for p in module.parameters())
        changes: dict[str, Any] = {}
        if self._method == pb.PRUNE_METHOD_STRUCTURED:
            heads, channels = self._spec.heads, self._spec.channels
            if not heads and not channels:
                heads = channels = 0.25
            changes = structure.shrink(module, heads, channels)
        elif self._method == pb.PRUNE_METHOD_TWO_OF_FOUR:
            sparsity.two_of_four(module)
        else:
            sparsity.magnitude(module, self._spec.amount or 0.5)
        if learned:
            recovery.recover(
                module,
                networks.module(subject),
                [batch.feeds for batch in against.batches(learned)],
                recovery.Settings(
                    steps=self._spec.recovery_steps,
                    rate=self._spec.learning_rate or 1e-4,
                    batch=self._spec.batch or 8,
                    seed=self._spec.seed,
                    threads=against.threads,
                ),
                self._context,
            )
        self._context.tell("compares the pruned version", 0.85)
        files = torch_folder.save(module, subject.folder, target, changes)
        network = networks.TorchNetwork(torch_folder.load(target), against.threads)
        found = against.compare(network)
        after = sum(p.numel() for p in module.parameters())
        zeros = sum(int((p == 0).sum()) for p in module.parameters())
        found |= {"parameters": float(after), "parameters_removed": 1 - after / before}
        found["zeros"] = zeros / after
        weights = [path for path in files if path.suffix == ".safetensors"]
        found = against.finish(f"pruned-{self._label}", found, weights, networks.alone(network))
        return found, {path.name: path for path in files}
