"""ONNX Runtime's ways: int8 with ranges at run time or calibrated, and 4-bit weights."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_model import ONNXModel

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.servers.optimizer.job.against import Against
from llmos.servers.optimizer.job.models import networks
from llmos.servers.optimizer.job.models.subject import Feeds, Network, Subject

BLOCK = 32
_STATIC = ("Conv", "MatMul", "Gemm")


class OnnxQuantiser:
    """Layers are MatMul (Gemm) and, calibrated, Conv nodes with a constant weight."""

    file = "model.onnx"

    def __init__(
        self,
        method: pb.QuantiseMethod.ValueType,
        subject: Subject,
        against: Against,
        calibration: list[Any],
    ) -> None:
        """Prepare a copy of the graph in which every node has a name."""
        self._method, self._subject, self._calibration = method, subject, calibration
        self._work = against.context.work
        self._ready = self._work / "prepared.onnx"
        self._ops = ("MatMul", "Conv") if self._static else ("MatMul",)
        # It advises, on the root logger and for every layer tried, what changes no cosine here.
        logging.getLogger().addFilter(lambda record: "pre-processing" not in record.getMessage())
        if not self._ready.exists():
            model = ONNXModel(onnx.load(subject.main))
            model.replace_gemm_with_matmul()
            _forget_shapes(model.model.graph)
            for index, node in enumerate(model.model.graph.node):
                node.name = node.name or f"{node.op_type}_{index}"
            temporary = self._ready.with_suffix(".tmp")
            onnx.save(model.model, temporary)
            temporary.replace(self._ready)

    @property
    def _static(self) -> bool:
        return self._method == pb.QUANTISE_METHOD_ONNX_STATIC_INT8

    def layers(self) -> list[str]:
        """Return the names of the nodes."""
        graph = onnx.load(self._ready, load_external_data=False).graph
        constants = {tensor.name for tensor in graph.initializer}
        return [
            node.name
            for node in graph.node
            if node.op_type in self._ops and len(node.input) > 1 and node.input[1] in constants
        ]

    def write(self, layers: Collection[str], target: Path) -> dict[str, Path]:
        """Write model.onnx.

        Dynamic, signed and per channel: measured on all-MiniLM-L6-v2, 300 paragraphs, a CPU
        without VNNI: mean cosine 0.992 and 11.8 ms a text; one scale per matrix gave 0.958,
        unsigned per channel 0.993 but 15.1 ms, fp32 20.4 ms.
        """
        target.mkdir(parents=True, exist_ok=True)
        path, temporary = target / self.file, target / "model.tmp"
        if path.exists():
            return {self.file: path}
        if self._method == pb.QUANTISE_METHOD_ONNX_INT4:
            self._four_bits(layers, temporary)
        elif self._static:
            quantize_static(
                self._ready,
                temporary,
                _Reader(self._subject, self._calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_STATIC),
                per_channel=True,
                nodes_to_quantize=sorted(layers),
            )
        else:
            # The embedding table (Gather) goes with the first layers: it costs no time at all.
            gathers = [] if len(layers) == 1 else self._gathers()
            quantize_dynamic(
                self._ready,
                temporary,
                weight_type=QuantType.QInt8,
                per_channel=True,
                nodes_to_quantize=[*sorted(layers), *gathers],
            )
        temporary.replace(path)
        return {self.file: path}

    def _gathers(self) -> list[str]:
        graph = onnx.load(self._ready, load_external_data=False).graph
        large = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
        return [n.name for n in graph.node if n.op_type == "Gather" and n.input[0] in large]

    def _four_bits(self, layers: Collection[str], path: Path) -> None:
        model = onnx.load(self._ready)
        left = [n.name for n in model.graph.node if n.name not in layers]
        way = MatMulNBitsQuantizer(
            model, bits=4, block_size=BLOCK, is_symmetric=True, nodes_to_exclude=left
        )
        way.process()
        onnx.save(way.model.model, path)

    def network(self, target: Path, threads: int) -> Network:
        """Load model.onnx."""
        return networks.onnx(target / self.file, threads)

    def trial(self, layer: str, scratch: Path) -> Network:
        """Write one, load it, and drop the file."""
        self.write([layer], scratch)
        network = networks.onnx(scratch / self.file, 1)
        (scratch / self.file).unlink()
        return network


def _forget_shapes(graph: onnx.GraphProto) -> None:
    """Remove what the graph says of its weights: a Gemm's are transposed now, their shapes not."""
    constants = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in constants]
    del graph.value_info[:]
    graph.value_info.extend(kept)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped library
    """Gives the rows to calibrate on, batch by batch."""

    def __init__(self, subject: Subject, rows: list[Any]) -> None:
        self._batches: Iterator[Feeds] = (b.feeds for b in subject.batches(rows))
        graph = onnx.load(subject.main, load_external_data=False).graph
        constants = {tensor.name for tensor in graph.initializer}
        self._names = [i.name for i in graph.input if i.name not in constants]

    def get_next(self) -> Feeds | None:
        """Return the next feeds; None at the end."""
        feeds = next(self._batches, None)
        if feeds is None:
            return None
        if not set(self._names) <= set(feeds):
            return {self._names[0]: next(iter(feeds.values()))}
        return {name: feeds[name] for name in self._names}
