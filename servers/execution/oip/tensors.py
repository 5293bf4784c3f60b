"""Tensors of the Open Inference Protocol as numpy arrays, and back.

BF16, which numpy has not, is float32 here. BYTES are object arrays: of `bytes` as they came, of
`str` where a model takes or gives strings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.api.inference import open_inference_pb2 as pb
from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.engine.base import TensorSpec

Array = npt.NDArray[Any]

DATATYPES = {
    "BOOL": "bool",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
NAMES = {dtype: datatype for datatype, dtype in DATATYPES.items()}
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_WIDE = {"int_contents": "int32", "uint_contents": "uint32"}


def bad(message: str) -> InvalidArgument:
    """Return the error for a tensor that is wrong."""
    return InvalidArgument("BAD_TENSOR", message)


def decode(
    request: pb.ModelInferRequest,
    specs: Mapping[str, TensorSpec],
    shared: Mapping[str, memoryview] | None = None,
) -> dict[str, Array]:
    """Return a request's inputs by name; strings are decoded where `specs` wants strings.

    shared: the elements of inputs that are not in the message; raw_input_contents has no entries
    for those. Raises InvalidArgument BAD_TENSOR: unknown or unexpected datatype, wrong number of
    elements or bytes, a name that comes twice.
    """
    shared = shared or {}
    raw = list(request.raw_input_contents)
    inline = [tensor for tensor in request.inputs if tensor.name not in shared]
    if raw and len(raw) != len(inline):
        raise bad(
            f"raw_input_contents has {len(raw)} entries for {len(inline)} inputs; send one "
            "for each, or none."
        )
    arrays: dict[str, Array] = {}
    position = 0
    for tensor in request.inputs:
        spec = specs.get(tensor.name)
        if tensor.name in arrays:
            raise bad(f"Tensor {tensor.name!r} comes twice.")
        if tensor.name in shared or raw:
            if tensor.HasField("contents"):
                where = "raw_input_contents" if raw else "shared memory"
                raise bad(f"Tensor {tensor.name!r} has contents beside {where}.")
            data: bytes | memoryview
            if tensor.name in shared:
                data = shared[tensor.name]
            else:
                data, position = raw[position], position + 1
            arrays[tensor.name] = from_bytes(tensor.name, tensor.datatype, tensor.shape, data, spec)
            continue
        _check(tensor.name, tensor.datatype, tensor.shape, spec)
        flat = _from_contents(tensor)
        arrays[tensor.name] = _shaped(tensor.name, flat, tensor.shape, tensor.datatype, spec)
    return arrays


def from_bytes(
    name: str,
    datatype: str,
    shape: Sequence[int],
    data: bytes | memoryview,
    spec: TensorSpec | None,
) -> Array:
    """Return a tensor from its raw elements, without a copy where that can be.

    Raises InvalidArgument BAD_TENSOR.
    """
    _check(name, datatype, shape, spec)
    return _shaped(name, _from_raw(name, datatype, data), shape, datatype, spec)


def _shaped(
    name: str, flat: Array, shape: Sequence[int], datatype: str, spec: TensorSpec | None
) -> Array:
    count = math.prod(shape)
    if flat.size != count:
        raise bad(
            f"Tensor {name!r} has {flat.size} elements; its shape {list(shape)} needs {count}."
        )
    if spec is not None and datatype == "BYTES" and not spec.raw:
        flat = strings(name, flat)
    return flat.reshape(tuple(shape))


def encode(array: Array, dtype: str) -> bytes:
    """Return an output's elements as raw bytes; dtype is the TensorSpec's."""
    if dtype == "object":
        parts = []
        for item in array.reshape(-1).tolist():
            data = item if isinstance(item, bytes) else str(item).encode()
            parts += [len(data).to_bytes(4, "little"), data]
        return b"".join(parts)
    if dtype == "bfloat16":  # the engine's float32 is exact: the lower half is zero
        bits = np.ascontiguousarray(array, "<f4").view("<u4") >> 16
        return bits.astype("<u2").tobytes()
    return np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()


def strings(name: str, flat: Array) -> Array:
    """Return an array of `bytes` as one of `str`. Raises BAD_TENSOR when it is not UTF-8."""
    try:
        texts = [item.decode() for item in flat.reshape(-1).tolist()]
    except UnicodeDecodeError as exc:
        raise bad(f"Tensor {name!r} has an element that is not UTF-8 text: {exc}.") from exc
    return _objects(texts).reshape(flat.shape)


def _check(name: str, datatype: str, shape: Sequence[int], spec: TensorSpec | None) -> None:
    if datatype not in DATATYPES:
        raise bad(
            f"Tensor {name!r} has datatype {datatype[:40]!r}; it must be one of "
            f"{', '.join(DATATYPES)}."
        )
    if spec is not None and spec.dtype and DATATYPES[datatype] != spec.dtype:
        if not (spec.raw and datatype == "UINT8"):  # pixels instead of an image file
            raise bad(
                f"Tensor {name!r} has datatype {datatype}; expected {NAMES[spec.dtype]} "
                f"of shape {list(spec.shape)} (-1 = free)."
            )
    if any(size < 0 for size in shape):
        raise bad(f"Tensor {name!r} has shape {list(shape)}; sizes are 0 or more.")


def _from_raw(name: str, datatype: str, data: bytes | memoryview) -> Array:
    if datatype == "BYTES":
        return _objects(_split(name, bytes(data)))
    stored = "<u2" if datatype == "BF16" else DATATYPES[datatype]
    dtype = np.dtype(stored).newbyteorder("<")
    if len(data) % dtype.itemsize:
        raise bad(
            f"Tensor {name!r} has {len(data)} bytes; elements of {datatype} have {dtype.itemsize}."
        )
    if datatype == "BOOL":
        truth: Array = np.frombuffer(data, np.uint8) != 0  # numpy's booleans are 0 and 1 only
        return truth
    flat = np.frombuffer(data, dtype)
    if datatype == "BF16":
        return (flat.astype(np.uint32) << 16).view(np.float32)
    return flat


def _split(name: str, data: bytes) -> list[bytes]:
    items, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > len(data):
            raise bad(
                f"Tensor {name!r} ends within an element; each element of BYTES has its length "
                "before it, 4 bytes, little-endian."
            )
        items.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return items


def _from_contents(tensor: pb.ModelInferRequest.InferInputTensor) -> Array:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise bad(f"Tensor {tensor.name!r}: {tensor.datatype} goes in raw_input_contents only.")
    others = [f.name for f, _ in tensor.contents.ListFields() if f.name != field]
    if others:
        raise bad(
            f"Tensor {tensor.name!r} has {others[0]}; elements of {tensor.datatype} are in {field}."
        )
    values: Sequence[Any] = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        return _objects(values)
    wide = np.array(values, _WIDE.get(field, DATATYPES[tensor.datatype]))
    narrow = wide.astype(DATATYPES[tensor.datatype])
    if tensor.datatype.startswith(("INT", "UINT")) and not np.array_equal(wide, narrow):
        raise bad(f"Tensor {tensor.name!r} has an element that does not fit {tensor.datatype}.")
    return narrow


def _objects(items: Sequence[Any]) -> Array:
    array = np.empty(len(items), object)
    array[:] = items
    return array
