"""bfloat16 tensors, which numpy has not: converts them from and to float32 around a run."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

_ONNX_BFLOAT16 = 16  # TensorProto.BFLOAT16


def run(
    session: Any,
    names: Sequence[str],
    inputs: Mapping[str, npt.NDArray[Any]],
    types: Mapping[str, str],
    options: Any,
) -> dict[str, npt.NDArray[Any]]:
    """Run a session whose inputs have the given types; bfloat16 outputs come as float32."""
    feeds = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(encode(array), _ONNX_BFLOAT16)
        if types[name] == "bfloat16"
        else ort.OrtValue.ortvalue_from_numpy(array)
        for name, array in inputs.items()
    }
    values = session.run_with_ort_values(list(names), feeds, options)
    return {name: _array(value) for name, value in zip(names, values, strict=True)}


def encode(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def decode(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return bfloat16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _array(value: Any) -> npt.NDArray[Any]:
    if value.data_type() != "tensor(bfloat16)":
        array: npt.NDArray[Any] = value.numpy()
        return array
    shape = value.shape()
    raw = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape)))  # run leaves outputs on CPU
    return decode(np.frombuffer(raw, np.uint16)).reshape(shape)
