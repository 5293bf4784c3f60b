"""ONNX: parses the graph, finds its external data, and tells its numbers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from llmos.servers.storage.extras import need
from llmos.servers.storage.formats.kinds import bad_file, truncated

_INT8 = {"MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv"}
_INT8 |= {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention", "QGemm"}
_INT4 = {"MatMulNBits", "GatherBlockQuantized"}
_NAMES = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16", "DOUBLE": "F64"} | {
    "INT8": "int8",
    "UINT8": "int8",
    "INT4": "int4",
    "UINT4": "int4",
}


@dataclass(frozen=True)
class Graph:
    """What was read. external: {location: bytes it must have at least}."""

    parameters: int
    dtype: str
    producer: str
    external: dict[str, int]


def read(name: str, path: Path) -> Graph:
    """Parse a model without its external data. Raises BAD_MODEL_FILE."""
    onnx = need("onnx")
    size = path.stat().st_size
    if size >= 1 << 31:
        raise bad_file(name, "2 GiB or more; save it with external data")
    try:
        model = onnx.load_model(path, load_external_data=False, format="protobuf")
    except DecodeError as exc:
        raise bad_file(
            name, "not ONNX, or truncated: it cannot be parsed; export or download it again"
        ) from exc
    if not (model.graph.node and model.graph.output and model.opset_import):
        raise bad_file(name, "ONNX without nodes, outputs or operator set; export it again")
    external: dict[str, int] = {}
    counts: Counter[str] = Counter()
    names = {v: k for k, v in onnx.TensorProto.DataType.items()}
    inner = (tensor for function in model.functions for tensor in _constants(function.node))
    for tensor in itertools.chain(_tensors(model.graph), inner):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _external(name, tensor, external)
        if dtype := _NAMES.get(names.get(tensor.data_type, "")):
            count = 1
            for dim in tensor.dims:
                count *= max(dim, 0)
            counts[dtype] += count
    return Graph(sum(counts.values()), _dtype(model.graph, counts), model.producer_name, external)


def check_external(name: str, graph: Graph, folder: str, files: Mapping[str, Path]) -> None:
    """Raise BAD_MODEL_FILE unless all external data is among `files` and long enough."""
    for location, needs in graph.external.items():
        path = files.get(f"{folder}{location}")
        if path is None:
            raise bad_file(
                name, f"its external data {location} is missing; put it beside the model"
            )
        if path.stat().st_size < needs:
            raise truncated(location, needs, path.stat().st_size)


def _external(name: str, tensor: Any, external: dict[str, int]) -> None:
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    parts = location.split("/")
    bad = not location or "\\" in location or "\0" in location or len(parts) > 2
    if bad or any(part in ("", ".", "..") for part in parts):
        raise bad_file(
            name,
            f"tensor {tensor.name[:80]} has its data at {location[:80]!r}, which is not a file "
            "beside the model; export it again",
        )
    numbers = [entries.get("offset", "0"), entries.get("length", "0")]
    if not all(n.isascii() and n.isdigit() and len(n) < 20 for n in numbers):
        raise bad_file(name, f"tensor {tensor.name[:80]} has a bad external offset or length")
    external[location] = max(external.get(location, 1), sum(map(int, numbers)))


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield all tensors of a graph: initializers, constants, and those of inner graphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
    yield from _constants(graph.node)


def _constants(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor.values
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors(inner)


def _dtype(graph: Any, counts: Counter[str]) -> str:
    operators = {node.op_type for node in graph.node}
    if operators & _INT4:
        return "int4"
    if operators & _INT8:
        return "int8"
    return counts.most_common(1)[0][0] if counts else ""
