"""Reads weight tensors of GGUF and safetensors files into float32 arrays. Keeps no copies.

Names are those of GGUF (`blk.0.attn_q.weight`); q and k rows are left in the file's own order.
"""

from __future__ import annotations

import abc
import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llmos.lib.errors import Unavailable
from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.torch.config import main_file
from llmos.servers.execution.engine.torch.gguf_header import GgufHeader, TensorInfo, damaged

Float32 = npt.NDArray[np.float32]
_CHUNK = 65_536  # quantisation blocks unpacked at a time: bounds temporaries to some 8 MB

_HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Weights(abc.ABC):
    """A model file's tensors by name. Reading is thread-safe.

    kernels: what unpacks faster than NumPy, to be set by who has it.
    """

    kernels: ctypes.CDLL | None = None

    @abc.abstractmethod
    def has(self, name: str) -> bool:
        """Say whether the file has a tensor of that name."""

    @abc.abstractmethod
    def _fill(self, name: str, out: Float32) -> None:
        """Write the tensor into `out`, which has its shape."""

    @abc.abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return its shape, rows first. Raises Unavailable LOAD_FAILED when it is not there."""

    @abc.abstractmethod
    def blame(self, why: str) -> Unavailable:
        """Return the error that names the file."""

    def read(self, names: Sequence[str], rows: Sequence[int], *width: int) -> Float32:
        """Return the tensors stacked by rows: float32 [sum(rows), *width].

        Raises Unavailable LOAD_FAILED when one is missing, has another shape than the
        configuration says, or holds a number that is not finite.
        """
        for name, count in zip(names, rows, strict=True):
            if self.shape(name) != (count, *width):
                raise self.blame(
                    f"tensor {name} has shape {list(self.shape(name))} where the configuration "
                    f"says {[count, *width]}"
                )
        out = np.empty((sum(rows), *width), np.float32)
        at = 0
        for name, count in zip(names, rows, strict=True):
            part = out[at : at + count]
            self._fill(name, part)
            # The sum is not finite if any element is not: one pass and no array of booleans.
            if not math.isfinite(part.sum()):
                raise self.blame(f"tensor {name} holds numbers that are not finite")
            at += count
        return out


class GgufWeights(Weights):
    """Tensors of one GGUF file, unpacked from whatever quantisation each has."""

    def __init__(self, path: Path, header: GgufHeader) -> None:
        """Map the file. Raises Unavailable LOAD_FAILED when it ends before its tensors do."""
        from gguf import quants
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        self._path, self._tensors, self._quants = path, header.tensors, quants
        self._sizes: dict[int, tuple[str, int, int]] = {
            int(kind): (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType
        }
        self._data = np.memmap(path, mode="r")
        for info in header.tensors.values():
            if info.offset + self._layout(info)[1] > len(self._data):
                raise damaged(path, f"it is truncated: tensor {info.name} lies past its end")

    def _layout(self, info: TensorInfo) -> tuple[str, int, int]:
        """Return the quantisation's name, the tensor's bytes, and the bytes of a block."""
        name, per_block, block = self._sizes.get(info.type, ("", 0, 0))
        if not per_block:
            raise self.blame(f"tensor {info.name} has the unknown type {info.type}")
        if info.shape[-1] % per_block:
            raise self.blame(f"tensor {info.name} does not divide into blocks of {per_block}")
        return name, math.prod(info.shape) // per_block * block, block

    def has(self, name: str) -> bool:
        """Say whether the file has a tensor of that name."""
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Return its shape."""
        if name not in self._tensors:
            raise self.blame(f"it has no tensor {name}")
        return self._tensors[name].shape

    def blame(self, why: str) -> Unavailable:
        """Return the error that names the file."""
        return damaged(self._path, why)

    def _fill(self, name: str, out: Float32) -> None:
        info = self._tensors[name]
        kind, size, block = self._layout(info)
        raw = self._data[info.offset : info.offset + size]
        if kind in ("F32", "F16"):
            out[...] = raw.view("<f4" if kind == "F32" else "<f2").reshape(info.shape)
            return
        codec: Any = getattr(self._quants, kind, None)
        if codec is None:
            raise self.blame(f"tensor {name} is quantised as {kind}, which cannot be unpacked")
        blocks = raw.reshape(-1, block)
        if self.kernels is not None and self.kernels.llmos_unpack(
            info.type, raw.ctypes.data, len(blocks), out.ctypes.data
        ):
            return
        codec.init_grid()
        flat = out.reshape(len(blocks), -1)
        # dequantize() of the package walks 16 rows at a time; its block function on large pieces
        # gives the same numbers in a third of the time.
        for at in range(0, len(blocks), _CHUNK):
            flat[at : at + _CHUNK] = codec.dequantize_blocks(blocks[at : at + _CHUNK])


class SafetensorsWeights(Weights):
    """Tensors of one or more safetensors files with Hugging Face names."""

    def __init__(self, spec: ModelSpec) -> None:
        """Open the files. Raises Unavailable LOAD_FAILED when one is damaged."""
        from safetensors import SafetensorError, safe_open

        main_file(spec, ".safetensors")
        self._where: dict[str, tuple[str, Any]] = {}
        self._ref = spec.ref
        for name, path in spec.files.items():
            if name.endswith(".safetensors"):
                try:
                    opened: Any = safe_open(path, framework="pt")
                except (SafetensorError, OSError) as error:
                    raise damaged(
                        Path(name), f"it is no whole safetensors file ({error})"
                    ) from error
                self._where |= {key: (name, opened) for key in opened.keys()}

    def has(self, name: str) -> bool:
        """Say whether the files have a tensor of that name."""
        return _hf_name(name) in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        """Return its shape."""
        if not self.has(name):
            raise self.blame(f"it has no tensor {_hf_name(name)}")
        return tuple(self._where[_hf_name(name)][1].get_slice(_hf_name(name)).get_shape())

    def blame(self, why: str) -> Unavailable:
        """Return the error that names the model."""
        return damaged(Path(self._ref), why)

    def _fill(self, name: str, out: Float32) -> None:
        tensor = self._where[_hf_name(name)][1].get_tensor(_hf_name(name))
        torch.from_numpy(out).copy_(tensor)


def _hf_name(name: str) -> str:
    """Translate `blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_HF_NAMES.get(parts[2], parts[2])}.{parts[3]}"
    return ".".join((_HF_NAMES.get(parts[0], parts[0]), *parts[1:]))
