"""The structures that kernels.cpp takes, and weights brought into its layout."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p

import torch
import torch.nn.functional as F
from torch import Tensor

from llmos.servers.execution.engine.torch.native.four import SMALL, TILE, pack4, unpack4

GROUP = 64  # inputs that share a weight scale (int8)


class CLinear(Structure):
    """One matrix."""

    _fields_ = [
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("bits", c_int64),
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
                "sums",
                "wide",
                "seen",
                "scores",
            )
        ),
    ]


def declare(library: ctypes.CDLL) -> None:
    """Tell ctypes the functions' arguments."""
    library.llmos_layers.argtypes = [
        POINTER(CShape),
        POINTER(CLayer),
        c_int64,
        c_int64,
        POINTER(CStep),
        c_void_p,
        c_void_p,
        c_int64,
        c_int64,
        POINTER(c_int64),
        POINTER(c_int32),
    ]
    library.llmos_layers.restype = c_int64
    library.llmos_attention.argtypes = [
        POINTER(CShape),
        POINTER(CLayer),
        POINTER(CStep),
        c_void_p,
        c_void_p,
    ]
    library.llmos_attention.restype = None
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
    library.llmos_pack.argtypes = [c_void_p, *[c_int64] * 3, c_void_p, c_void_p, c_int32]
    library.llmos_pack.restype = None
    library.llmos_unpack.argtypes = [c_int32, c_void_p, c_int64, c_void_p]
    library.llmos_unpack.restype = c_int32


class PackedLinear:
    """A matrix of few bits. Owns the arrays that `c` points to.

    int8: symmetric, rounded to nearest, a float32 scale per output and GROUP inputs (as GGUF's
    Q8_0, with twice its group). int4: a scale and a least weight, both float16, per output and
    SMALL inputs (as Q4_1); the codes are those of the least squared error of a few tries, and what
    Q4_1 was before stays what it was.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        library: ctypes.CDLL | None = None,
        threads: int = 1,
        bits: int = 8,
    ) -> None:
        """Round and reorder `weight`, float32 [out, in], and `bias` [out]; faster by `library`."""
        self.width, inputs = weight.shape
        outputs, padded = _up(self.width, TILE), _up(inputs, GROUP)
        tiles = outputs // TILE
        if library is not None:
            if bits == 4:
                self._weight = torch.empty(tiles, padded // 8, TILE, 2, dtype=torch.int16)
                self._scale = torch.empty(tiles, padded // SMALL, 2, TILE, dtype=torch.float16)
            else:
                self._weight = torch.empty(tiles, padded // 2, TILE, 2, dtype=torch.int8)
                self._scale = torch.empty(tiles, padded // GROUP, TILE)
            weight = weight.contiguous()
            library.llmos_pack(
                weight.data_ptr(),
                self.width,
                inputs,
                bits,
                self._weight.data_ptr(),
                self._scale.data_ptr(),
                threads,
            )
        else:
            pack = pack4 if bits == 4 else _pack8
            self._weight, self._scale = pack(weight, outputs, padded)
        self._bias = None
        if bias is not None:
            self._bias = F.pad(bias.float(), (0, outputs - self.width)).contiguous()
        self._point()

    @classmethod
    def of(cls, width: int, parts: Mapping[str, Tensor]) -> PackedLinear:
        """Return the matrix of `width` outputs that had these `parts`."""
        made = cls.__new__(cls)
        made.width = width
        made._weight, made._scale, made._bias = parts["weight"], parts["scale"], parts.get("bias")
        made._point()
        return made

    def parts(self) -> dict[str, Tensor]:
        """Return what it is made of, for `of`."""
        parts = {"weight": self._weight, "scale": self._scale}
        return parts if self._bias is None else {**parts, "bias": self._bias}

    def _point(self) -> None:
        bias = None if self._bias is None else self._bias.data_ptr()
        tiles, runs = self._weight.shape[:2]
        bits, inputs = (4, 8 * runs) if self._weight.dtype == torch.int16 else (8, 2 * runs)
        pointers = self._weight.data_ptr(), self._scale.data_ptr(), bias
        self.c = CLinear(*pointers, tiles * TILE, inputs, bits)

    @property
    def inputs(self) -> int:
        """Return the padded number of inputs."""
        return int(self.c.inputs)

    def dequantised(self) -> Tensor:
        """Return what the codes stand for, float32 [padded outputs, padded inputs]."""
        outputs, inputs = int(self.c.outputs), self.inputs
        if self.c.bits == 4:
            return unpack4(self._weight, self._scale)
        codes = self._weight.transpose(1, 2).reshape(outputs, inputs).float()
        scale = self._scale.transpose(1, 2).reshape(outputs, -1)
        return codes * scale.repeat_interleave(GROUP, 1)


def _pack8(weight: Tensor, outputs: int, padded: int) -> tuple[Tensor, Tensor]:
    whole = F.pad(weight, (0, padded - weight.shape[1], 0, outputs - weight.shape[0]))
    groups = whole.view(outputs, padded // GROUP, GROUP)
    most = groups.abs().amax(-1)
    by = torch.where(most > 0, 127 / most, 0.0)
    codes = (groups * by[..., None]).round_().to(torch.int8)
    tiles = codes.view(outputs // TILE, TILE, padded // 2, 2).transpose(1, 2).contiguous()
    return tiles, (most / 127).view(outputs // TILE, TILE, -1).transpose(1, 2).contiguous()


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
