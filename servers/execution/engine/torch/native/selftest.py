"""Checks freshly loaded kernels against arithmetic: instruction sets differ from CPU to CPU."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from llmos.servers.execution.engine.torch.native.four import SMALL
from llmos.servers.execution.engine.torch.native.layout import CShape, CStep, PackedLinear

_ROWS = (1, 4, 6, 17)  # each takes another way through the kernel


def works(library: ctypes.CDLL) -> bool:
    """Say whether products are right and the same in any company; takes milliseconds."""
    noise = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 192, generator=noise)
    x = torch.randn(max(_ROWS), 192, generator=noise) * 50
    x[0] = 50  # the largest sums that can be
    for bits in (8, 4):
        matrix = PackedLinear(weight, None, library, bits=bits)
        exact = x.double() @ matrix.dequantised()[:40].double().T
        whole = product(library, matrix, x)
        if float((whole - exact).abs().max() / exact.abs().max()) > 1e-4:
            return False
        if not all(torch.equal(product(library, matrix, x[:n].clone()), whole[:n]) for n in _ROWS):
            return False
    return True


def product(library: ctypes.CDLL, matrix: PackedLinear, x: Tensor, threads: int = 1) -> Tensor:
    """Return `x` [rows, in] times a matrix."""
    y = torch.empty(len(x), matrix.width)
    rounded = torch.empty(len(x), matrix.inputs, dtype=torch.int16)
    scale, sums = torch.empty(len(x)), torch.empty(len(x), matrix.inputs // SMALL)
    step = CStep(rows=len(x), x=x.data_ptr(), sums=sums.data_ptr())
    step.rounded, step.row_scale = rounded.data_ptr(), scale.data_ptr()
    library.llmos_linear(
        ctypes.byref(CShape(threads=threads)),
        ctypes.byref(matrix.c),
        ctypes.byref(step),
        None,
        x.shape[1],
        y.data_ptr(),
        matrix.width,
    )
    return y
