"""The structures that kernels.cpp takes, and weights brought into its layout."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 64  # inputs that share a weight scale
TILE = 16  # outputs computed together


class CLinear(Structure):
    """One matrix."""

    _fields_ = [
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
    ]


class CShape(Structure):
    """What all layers share."""

    _fields_ = [
        *((name, c_int64) for name in ("hidden", "heads", "kv_heads", "head_dim", "ffn", "half")),
        ("eps", c_float),
        ("threads", c_int32),
    ]


class CLayer(Structure):
    """One layer."""

    _fields_ = [
        *((name, c_void_p) for name in ("attn_norm", "ffn_norm", "q_norm", "k_norm")),
        *((name, CLinear) for name in ("qkv", "out", "gate_up", "down")),
    ]


class CStep(Structure):
    """One step: rows and where they belong."""

    _fields_ = [
        ("rows", c_int64),
        ("table_width", c_int64),
        *(
            (name, c_void_p)
            for name in (
                "x",
                "turns",
                "sequence",
                "position",
                "tables",
                "rounded",
                "row_scale",
                "wide",
                "seen",
                "scores",
            )
        ),
    ]


def declare(library: ctypes.CDLL) -> None:
    """Tell ctypes the functions' arguments."""
    for function in (library.llmos_layer, library.llmos_attention):
        function.argtypes = [POINTER(CShape), POINTER(CLayer), POINTER(CStep), c_void_p, c_void_p]
        function.restype = None
    library.llmos_linear.argtypes = [
        POINTER(CShape),
        POINTER(CLinear),
        POINTER(CStep),
        c_void_p,
        c_int64,
        c_void_p,
        c_int64,
    ]
    library.llmos_linear.restype = None
    library.llmos_pack.argtypes = [c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int32]
    library.llmos_pack.restype = None
    library.llmos_unpack.argtypes = [c_int32, c_void_p, c_int64, c_void_p]
    library.llmos_unpack.restype = c_int32


class PackedLinear:
    """An int8 matrix, symmetric, with a float32 scale per output and GROUP inputs.

    Rounding to nearest (as GGUF's Q8_0, with twice its group). Owns the arrays that `c` points to.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        library: ctypes.CDLL | None = None,
        threads: int = 1,
    ) -> None:
        """Round and reorder `weight`, float32 [out, in], and `bias` [out]; faster by `library`."""
        self.width, inputs = weight.shape
        outputs, padded = _up(self.width, TILE), _up(inputs, GROUP)
        if library is not None:
            self._weight = torch.empty(outputs // TILE, padded // 2, TILE, 2, dtype=torch.int8)
            self._scale = torch.empty(outputs // TILE, padded // GROUP, TILE)
            weight = weight.contiguous()
            library.llmos_pack(
                weight.data_ptr(),
                self.width,
                inputs,
                self._weight.data_ptr(),
                self._scale.data_ptr(),
                threads,
            )
        else:
            self._weight, self._scale = _pack(weight, outputs, padded)
        self._bias = None
        if bias is not None:
            self._bias = F.pad(bias.float(), (0, outputs - self.width)).contiguous()
        self._point(outputs, padded)

    @classmethod
    def of(cls, width: int, parts: Mapping[str, Tensor]) -> PackedLinear:
        """Return the matrix of `width` outputs that had these `parts`."""
        made = cls.__new__(cls)
        made.width = width
        made._weight, made._scale, made._bias = parts["weight"], parts["scale"], parts.get("bias")
        tiles, half = made._weight.shape[:2]
        made._point(tiles * TILE, 2 * half)
        return made

    def parts(self) -> dict[str, Tensor]:
        """Return what it is made of, for `of`."""
        parts = {"weight": self._weight, "scale": self._scale}
        return parts if self._bias is None else {**parts, "bias": self._bias}

    def _point(self, outputs: int, inputs: int) -> None:
        bias = None if self._bias is None else self._bias.data_ptr()
        self.c = CLinear(self._weight.data_ptr(), self._scale.data_ptr(), bias, outputs, inputs)

    @property
    def inputs(self) -> int:
        """Return the padded number of inputs."""
        return int(self.c.inputs)

    def dequantised(self) -> Tensor:
        """Return what the codes stand for, float32 [padded outputs, padded inputs]."""
        tiles, half = self._weight.shape[:2]
        codes = self._weight.transpose(1, 2).reshape(tiles * TILE, half * 2).float()
        scale = self._scale.transpose(1, 2).reshape(tiles * TILE, -1)
        return codes * scale.repeat_interleave(GROUP, 1)


def _pack(weight: Tensor, outputs: int, padded: int) -> tuple[Tensor, Tensor]:
    whole = F.pad(weight, (0, padded - weight.shape[1], 0, outputs - weight.shape[0]))
    groups = whole.view(outputs, padded // GROUP, GROUP)
    most = groups.abs().amax(-1)
    by = torch.where(most > 0, 127 / most, 0.0)
    codes = (groups * by[..., None]).round_().to(torch.int8)
    tiles = codes.view(outputs // TILE, TILE, padded // 2, 2).transpose(1, 2).contiguous()
    return tiles, (most / 127).view(outputs // TILE, TILE, -1).transpose(1, 2).contiguous()


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
