"""A model's first layers as a model of their own: the simplest draft model there is."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

_UINT32 = 4  # type of GGUF's metadata


def layer_cut(source: Path, target: Path, layers: int) -> Path:
    """Write a llama's GGUF file with another number of layers; the others' tensors stay unused."""
    shutil.copyfile(source, target)
    key = b"llama.block_count"
    with target.open("r+b") as file:
        at = file.read(1 << 20).index(key) + len(key)
        file.seek(at)
        (kind,) = struct.unpack("<I", file.read(4))
        assert kind == _UINT32
        file.write(struct.pack("<I", layers))
    return target
