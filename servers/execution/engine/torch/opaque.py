"""Tensors in oneDNN's own layout as bytes, and back, without a copy.

torch's compiler keeps repacked weights in the files of compiled models this way (AOTInductor's C
interface, torch/csrc/inductor/aoti_torch/c/shim.h, `aoti_torch_create_tensor_from_blob_v2`).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@functools.cache
def _shim() -> Any:
    """Return the library and the layout's number; None where this torch has them not."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        create = library.aoti_torch_create_tensor_from_blob_v2
        layout = int(library.aoti_torch_layout__mkldnn())
    except (OSError, AttributeError):
        return None
    numbers = (ctypes.c_int64, ctypes.c_int32)
    create.argtypes = [ctypes.c_void_p, numbers[0], ctypes.c_void_p, ctypes.c_void_p, numbers[0]]
    create.argtypes += [numbers[1]] * 3 + [ctypes.c_void_p, numbers[1], ctypes.c_char_p, numbers[0]]
    return library, layout


def possible() -> bool:
    """Return whether this torch can turn such tensors into bytes and back."""
    operators = ("data_ptr", "_nbytes", "_get_mkldnn_serialized_md")
    return (
        _shim() is not None
        and hasattr(torch._C, "_aoti")
        and hasattr(torch._C._aoti, "alloc_tensor_by_stealing_from_void_ptr")
        and all(hasattr(torch.ops.mkldnn, name) for name in operators)
    )


def content(tensor: Tensor) -> tuple[memoryview, bytes]:
    """Return a tensor's bytes (valid while it lives) and what describes their layout."""
    size = int(torch.ops.mkldnn._nbytes(tensor))
    array = (ctypes.c_uint8 * size).from_address(int(torch.ops.mkldnn.data_ptr(tensor)))
    layout = torch.ops.mkldnn._get_mkldnn_serialized_md(tensor)
    return memoryview(array).cast("B"), layout.numpy().tobytes()


def tensor_at(address: int, shape: Sequence[int], dtype: torch.dtype, layout: bytes) -> Tensor:
    """Return the tensor over the bytes at `address`, which must outlive it.

    Raises ValueError when oneDNN does not take the layout.
    """
    library, opaque = _shim()
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    strides = (ctypes.c_int64 * len(shape))(*torch.empty(shape, device="meta").stride())
    handle = ctypes.c_void_p()
    status = library.aoti_torch_create_tensor_from_blob_v2(
        address,
        len(shape),
        sizes,
        strides,
        0,
        getattr(library, f"aoti_torch_dtype_{_DTYPES[dtype]}")(),
        library.aoti_torch_device_type_cpu(),
        -1,
        ctypes.byref(handle),
        opaque,
        layout,
        len(layout),
    )
    if status:
        raise ValueError(f"oneDNN does not take a layout of {len(layout)} bytes")
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    made: Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(
        capsule(handle, None, None)
    )
    return made
