"""The work of the kind export: write, run what was written on the data, compare, register."""

from __future__ import annotations

import asyncio
from pathlib import Path

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.api.optimizer.v1 import measure_pb2
from llmos.servers.optimizer.job import figures
from llmos.servers.optimizer.job.against import Against
from llmos.servers.optimizer.job.context import JobContext
from llmos.servers.optimizer.job.models import networks
from llmos.servers.optimizer.job.models.subject import Network, Subject

_NAMES = {
    pb.EXPORT_FORMAT_ONNX: ("onnx", "model.onnx"),
    pb.EXPORT_FORMAT_TORCH_EXPORT: ("torch-export", "model.pt2"),
    pb.EXPORT_FORMAT_TORCHSCRIPT: ("torchscript", "model.pt"),
    pb.EXPORT_FORMAT_SAFETENSORS: ("safetensors", "model.safetensors"),
}
_USUAL = (
    measure_pb2.Gate(measure="relative_error", most=0.001),
    measure_pb2.Gate(measure="argmax_agreement", least=0.999),
)


class Export:
    """One run; the written file stays in the working folder for the next process."""

    def __init__(self, context: JobContext) -> None:
        """Prepare."""
        self._context = context
        self._spec: pb.Export = context.spec
        self._format = self._spec.format or pb.EXPORT_FORMAT_ONNX

    async def run(self) -> None:
        """Do it. Raises FailedPrecondition TOO_FAR with the figures, and what storage says."""
        label, name = _NAMES[self._format]
        against = Against(self._context, self._spec.data)
        subject = await against.open()
        target = self._context.work / label / name
        self._context.tell(f"exports to {label}", 0.3)
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            await asyncio.to_thread(self._write, against, subject, target)
        self._context.tell(f"compares the {label} version", 0.6)
        found, files = await asyncio.to_thread(self._compare, against, subject, target, label)
        why = figures.closed(against.gates(self._spec.gates, _USUAL), found, against.original)
        if why:
            raise figures.too_far(f"The {label} version of {subject.ref}", why)
        self._context.tell(f"registers the {label} version", 0.9)
        await against.register(label, found, files, self._spec.name, f"export-{label}")

    def _write(self, against: Against, subject: Subject, target: Path) -> None:
        from llmos.servers.optimizer.job.compress import exporters

        if self._format == pb.EXPORT_FORMAT_SAFETENSORS:
            from llmos.servers.optimizer.job.models import gguf_model

            gguf_model.to_folder(subject.main, target.parent)
            return
        module, batch = networks.module(subject), against.batches()[-1]
        if self._format == pb.EXPORT_FORMAT_ONNX:
            exporters.onnx(module, batch, target)
        elif self._format == pb.EXPORT_FORMAT_TORCH_EXPORT:
            exporters.exported(module, module, batch, target)
        else:
            exporters.scripted(module, batch, target)

    def _compare(
        self, against: Against, subject: Subject, target: Path, label: str
    ) -> tuple[dict[str, float], dict[str, Path | str]]:
        files: dict[str, Path | str] = {target.name: target}
        network: Network
        if self._format == pb.EXPORT_FORMAT_ONNX:
            network = networks.onnx(target, against.threads)
            alone = networks.onnx(target, 1)
        else:
            network = networks.from_file(target, against.threads, subject)
            alone = networks.alone(network)
        if self._format == pb.EXPORT_FORMAT_SAFETENSORS:
            files |= {path.name: path for path in target.parent.iterdir()}
        found = against.compare(network)
        return against.finish(label, found, [target], alone), files
