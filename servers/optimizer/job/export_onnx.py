"""The job export_onnx: export, check, register; quantise, check, register.

Every step leaves its product in the working folder under its final name when it is whole, so that
the next process of a job that died goes on after the last whole step. Registering has a request
id of the job and the step: it happens once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.storage.v1 import registry_pb2
from llmos.lib.encoder import TextEncoder
from llmos.lib.errors import FailedPrecondition
from llmos.servers.optimizer.job import compare, corpus
from llmos.servers.optimizer.job.context import JobContext, metric
from llmos.servers.optimizer.job.quantise import quantise

TEXTS = 256
_MIN_COSINE = 0.9999
_MIN_COSINE_INT8 = 0.95
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".onnx", ".gguf")


class ExportOnnx:
    """One run of the job, in `work`; blocking steps run in a thread, so that the port lives."""

    def __init__(self, context: JobContext) -> None:
        """Prepare; nothing is done before `run`."""
        self._context = context
        self._launch = context.launch
        self._spec: jobs_pb2.ExportOnnx = context.spec
        self._work = context.work
        self._storage = context.storage
        self._texts = corpus.texts(TEXTS)
        self._original = self._work / "original"

    async def run(self) -> None:
        """Do it. Raises FailedPrecondition TOO_FAR with the figures, and what storage says."""
        self._context.tell("fetches the source", 0.02)
        source = await self._storage.version(self._launch.source)
        paths = await self._storage.lay_out(source, self._work / "source")
        encoder = TextEncoder(paths)
        fp32 = self._work / "fp32" / "model.onnx"
        self._context.tell("loads and exports the source", 0.05)
        await asyncio.to_thread(self._export, encoder, fp32)
        weights = [f for f in source.files if f.name.endswith(_WEIGHTS)]
        latency = json.loads((self._original / "latency.json").read_text())
        self._context.compared(
            jobs_pb2.Comparison(
                label="original",
                ref=self._launch.source,
                cosine_min=1,
                cosine_mean=1,
                size_bytes=sum(f.size for f in weights),
                latency_s=latency,
                texts=len(self._texts),
            )
        )
        beside = [f for f in source.files if f not in weights]
        self._context.tell("compares the ONNX version", 0.5)
        result = await asyncio.to_thread(self._compare, encoder, fp32, "onnx")
        _gate("ONNX", "smallest", result.cosine_min, self._spec.min_cosine or _MIN_COSINE)
        self._context.tell("registers the ONNX version", 0.65)
        ref = await self._register(fp32, beside, result, self._launch.source, "export-onnx")
        if self._spec.skip_int8:
            return
        int8 = self._work / "int8" / "model.onnx"
        self._context.tell("quantises", 0.7)
        await asyncio.to_thread(self._quantise, fp32, int8)
        self._context.tell("compares the int8 version", 0.85)
        result = await asyncio.to_thread(self._compare, encoder, int8, "onnx-int8")
        gate = self._spec.min_cosine_int8 or _MIN_COSINE_INT8
        _gate("int8", "mean", result.cosine_mean, gate)
        self._context.tell("registers the int8 version", 0.95)
        await self._register(int8, beside, result, ref, "quantize-int8-dynamic")

    def _export(self, encoder: TextEncoder, target: Path) -> None:
        """Export, and keep the original's vectors and latency: torch is needed here only."""
        if (self._original / "latency.json").exists():
            return
        target.parent.mkdir(exist_ok=True)
        self._original.mkdir(exist_ok=True)
        from llmos.servers.optimizer.job.original import Original

        network = Original(self._work / "source", self._launch.threads)
        self._context.tell("exports the source", 0.15)
        network.export(target)
        self._context.tell("measures the source", 0.3)
        np.save(self._original / "vectors.npy", compare.embed(encoder, network, self._texts))
        network.use_threads(1)
        seconds = compare.latency_s(encoder, network, self._texts)
        temporary = self._original / "latency.tmp"
        temporary.write_text(json.dumps(seconds))
        temporary.replace(self._original / "latency.json")  # last: it says that all is there

    def _quantise(self, source: Path, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            quantise(source, target)

    def _compare(self, encoder: TextEncoder, path: Path, label: str) -> jobs_pb2.Comparison:
        network = compare.onnx_network(path, self._launch.threads)
        vectors = compare.embed(encoder, network, self._texts)
        found = compare.difference(vectors, np.load(self._original / "vectors.npy"))
        alone = compare.onnx_network(path, 1)
        comparison = jobs_pb2.Comparison(
            label=label,
            cosine_min=found.minimum,
            cosine_mean=found.mean,
            size_bytes=path.stat().st_size,
            latency_s=compare.latency_s(encoder, alone, self._texts),
            texts=len(self._texts),
        )
        self._context.compared(comparison)
        return comparison

    async def _register(
        self,
        path: Path,
        beside: Sequence[registry_pb2.File],
        comparison: jobs_pb2.Comparison,
        parent: str,
        step: str,
    ) -> str:
        ref = await self._context.register(
            {"model.onnx": path, **{f.name: f.sha256 for f in beside}},
            step=step,
            parents=[parent],
            metrics=[
                metric("cosine_vs_original_min", comparison.cosine_min),
                metric("cosine_vs_original_mean", comparison.cosine_mean),
                metric("size", comparison.size_bytes, "bytes"),
                metric("latency_one_text", comparison.latency_s * 1e3, "ms"),
            ],
        )
        comparison.ref = ref
        self._context.compared(comparison)
        return ref


def _gate(what: str, which: str, cosine: float, least: float) -> None:
    if not cosine >= least:  # NaN does not pass
        raise FailedPrecondition(
            "TOO_FAR",
            f"The {what} version is too far from the original: its {which} cosine over {TEXTS} "
            f"texts is {cosine:.6f}, at least {least} was asked; it was not registered.",
        )
