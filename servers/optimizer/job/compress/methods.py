"""What a way to quantise offers, and which class has it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.servers.optimizer.job.against import Against
from llmos.servers.optimizer.job.models.subject import Network, Subject

LABELS = {
    pb.QUANTISE_METHOD_ONNX_DYNAMIC_INT8: "int8-dynamic",
    pb.QUANTISE_METHOD_ONNX_STATIC_INT8: "int8-static",
    pb.QUANTISE_METHOD_ONNX_INT4: "int4",
    pb.QUANTISE_METHOD_TORCHAO_INT8: "torchao-int8",
    pb.QUANTISE_METHOD_TORCHAO_INT4: "torchao-int4",
    pb.QUANTISE_METHOD_GGUF_Q8_0: "q8_0",
    pb.QUANTISE_METHOD_GGUF_Q4_0: "q4_0",
    pb.QUANTISE_METHOD_GGUF_Q4_1: "q4_1",
    pb.QUANTISE_METHOD_GGUF_Q5_0: "q5_0",
}


class Quantiser(Protocol):
    """One way, for one source."""

    file: str  # name of what it writes

    def layers(self) -> list[str]:
        """Return the names of the layers that it would quantise."""

    def write(self, layers: Collection[str], target: Path) -> dict[str, Path]:
        """Quantise these layers only; return the files by name, whole or not at all."""

    def network(self, target: Path, threads: int) -> Network:
        """Load what `write` wrote."""

    def trial(self, layer: str, scratch: Path) -> Network:
        """Return the source with only this layer quantised; good until the next call."""


def quantiser(
    method: pb.QuantiseMethod.ValueType, subject: Subject, against: Against, calibration: list[str]
) -> Quantiser:
    """Return the way that a method names. calibration: rows to find ranges on, as Rows.inputs."""
    if method in (
        pb.QUANTISE_METHOD_ONNX_DYNAMIC_INT8,
        pb.QUANTISE_METHOD_ONNX_STATIC_INT8,
        pb.QUANTISE_METHOD_ONNX_INT4,
    ):
        from llmos.servers.optimizer.job.compress.onnx_ways import OnnxQuantiser

        return OnnxQuantiser(method, subject, against, calibration)
    if method in (pb.QUANTISE_METHOD_TORCHAO_INT8, pb.QUANTISE_METHOD_TORCHAO_INT4):
        from llmos.servers.optimizer.job.compress.torchao_ways import TorchaoQuantiser

        return TorchaoQuantiser(method, subject, against)
    from llmos.servers.optimizer.job.compress.gguf_ways import GgufQuantiser

    return GgufQuantiser(LABELS[method].upper(), subject, against)
