"""Weights of GGUF files unpacked by the compiled kernel, against the package that defines them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from llmos.servers.execution.engine.torch.native.build import library
from llmos.servers.execution.engine.torch.native.layout import declare


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"])
def test_blocks_are_unpacked_to_the_same_bits(kind: str) -> None:
    kernels = library()
    if kernels is None:
        pytest.skip("no compiled kernels here")
    declare(kernels)
    type_ = GGMLQuantizationType[kind]
    numbers, size = GGML_QUANT_SIZES[type_]
    blocks = np.random.default_rng(0).integers(0, 256, (500, size), np.uint8)
    with np.errstate(invalid="ignore"):  # random scales may be infinite or no numbers
        expected = gguf.dequantize(blocks, type_)
    found = np.full((500, numbers), np.nan, np.float32)
    assert kernels.llmos_unpack(type_.value, blocks.ctypes.data, 500, found.ctypes.data) == 1
    finite = np.isfinite(expected).all(1)
    assert finite.sum() > 400
    assert found[finite].tobytes() == expected[finite].tobytes()
    assert (np.isfinite(found) == np.isfinite(expected)).all()


def test_other_kinds_are_left_to_the_package() -> None:
    kernels = library()
    if kernels is None:
        pytest.skip("no compiled kernels here")
    declare(kernels)
    assert kernels.llmos_unpack(GGMLQuantizationType.IQ4_NL.value, None, 0, None) == 0
