"""The work of the kind quantise: write, compare; leave the worst layers out until it is good."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Collection
from pathlib import Path

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.api.optimizer.v1 import measure_pb2
from llmos.lib.errors import InvalidArgument
from llmos.servers.optimizer.job import figures
from llmos.servers.optimizer.job.against import Against
from llmos.servers.optimizer.job.compress.methods import LABELS, Quantiser, quantiser
from llmos.servers.optimizer.job.context import JobContext

_USUAL = (
    measure_pb2.Gate(measure="cosine_mean", least=0.95),
    measure_pb2.Gate(measure="argmax_agreement", least=0.9),
)
LISTED = 1000


class Quantise:
    """One run; what was written and measured stays in the working folder."""

    def __init__(self, context: JobContext) -> None:
        """Prepare."""
        self._context = context
        self._spec: pb.Quantise = context.spec
        self._method = self._spec.method or pb.QUANTISE_METHOD_ONNX_DYNAMIC_INT8
        self._label = LABELS[self._method]
        self._errors: dict[str, float] = {}

    async def run(self) -> None:
        """Do it. Raises FailedPrecondition TOO_FAR with the figures, InvalidArgument BAD_SPEC."""
        self._against = against = Against(self._context, self._spec.data)
        subject = await against.open()
        calibration = []
        if self._method == pb.QUANTISE_METHOD_ONNX_STATIC_INT8:
            calibration = list((await against.read(learn=True)).inputs)
        way = await asyncio.to_thread(quantiser, self._method, subject, against, calibration)
        every = way.layers()
        unknown = set(self._spec.exclude) - set(every)
        if unknown or not every:
            raise InvalidArgument(
                "BAD_SPEC",
                f"quantise.exclude names {sorted(unknown)[0]!r}, which is no layer; there are "
                f"{', '.join(every[:8])} ..."
                if unknown
                else f"{subject.ref} has no layer that {self._label} can quantise.",
            )
        gates = against.gates(self._spec.gates, _USUAL)
        excluded = list(self._spec.exclude)
        budget = math.floor(self._spec.exclude_up_to * len(every)) + len(excluded)
        step = 1
        while True:
            found, files = await self._try(way, every, excluded)
            why = figures.closed(gates, found, against.original)
            if not why or len(excluded) >= budget:
                break
            await self._rank(way, every, 0.4)
            worst = [name for name in self._worst() if name not in excluded]
            excluded += worst[: min(step, budget - len(excluded))]
            step *= 2
        if self._spec.report_layers:
            await self._rank(way, every, 0.8)
        await asyncio.to_thread(self._tell_layers, excluded, found)
        if why:
            left = f" with {len(excluded)} of {len(every)} layers left out" if excluded else ""
            raise figures.too_far(f"The {self._label} version of {subject.ref}{left}", why)
        self._context.tell(f"registers the {self._label} version", 0.95)
        await against.register(
            self._label, found, dict(files), self._spec.name, f"quantise-{self._label}"
        )

    async def _try(
        self, way: Quantiser, every: list[str], excluded: list[str]
    ) -> tuple[dict[str, float], dict[str, Path]]:
        note = f", {len(excluded)} layers left out" if excluded else ""
        self._context.tell(f"quantises{note}", 0.3)
        target = self._context.work / f"{self._label}-{len(excluded)}"

        def work() -> tuple[dict[str, float], dict[str, Path]]:
            files = way.write([name for name in every if name not in excluded], target)
            found = self._against.compare(way.network(target, self._against.threads))
            found["layers_quantised"] = float(len(every) - len(excluded))
            alone = way.network(target, 1)
            main = [path for name, path in files.items() if name == way.file]
            return self._against.finish(self._label, found, main, alone), files

        return await asyncio.to_thread(work)

    async def _rank(self, way: Quantiser, every: list[str], progress: float) -> None:
        """Measure each layer alone, unless that is known from before."""
        known = self._context.work / "layers.json"
        if known.exists():
            self._errors = json.loads(known.read_text())
        scratch = self._context.work / "trial"
        scratch.mkdir(exist_ok=True)

        def measure(layer: str) -> float:
            return self._against.compare(way.trial(layer, scratch))["relative_error"]

        for index, layer in enumerate(every):
            if layer in self._errors:
                continue
            self._context.tell(f"measures layer {index + 1} of {len(every)}", progress)
            self._errors[layer] = await asyncio.to_thread(measure, layer)
            temporary = known.with_suffix(".tmp")
            temporary.write_text(json.dumps(self._errors))
            temporary.replace(known)

    def _worst(self) -> list[str]:
        return sorted(self._errors, key=lambda name: self._errors[name], reverse=True)

    def _tell_layers(self, excluded: Collection[str], found: dict[str, float]) -> None:
        if not self._errors:
            return
        comparison = figures.comparison(self._label, "", found, len(self._against.rows.inputs))
        comparison.layers.extend(
            measure_pb2.LayerError(layer=n, error=self._errors[n], excluded=n in excluded)
            for n in self._worst()[:LISTED]
        )
        self._against.layers = list(comparison.layers)
        self._context.compared(comparison)
