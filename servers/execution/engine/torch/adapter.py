"""LoRA adapters (Hu et al. 2021): small matrices beside a model's own, never merged into them.

y = W x + s B A x for the rows of requests that name the adapter. Reads PEFT's format:
adapter_config.json and adapter_model.safetensors. Adapters of q, k, v and of gate, up are stacked
as the model's matrices are, so that each takes two products.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmos.lib.errors import FailedPrecondition
from llmos.servers.execution.engine.torch.config import LlamaConfig
from llmos.servers.execution.engine.torch.linear import PROBE_ROWS, Linear, invariant_rows

CONFIG, _WEIGHTS = "adapter_config.json", ".safetensors"
_NAME = re.compile(
    r".*?layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)_proj\.lora_([AB])(?:\.\w+)?\.weight"
)
_STACKS = {"qkv": ("q", "k", "v"), "out": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}


class Adapter:
    """One adapter's matrices for one model. bytes: what they take."""

    def __init__(
        self,
        ref: str,
        files: Mapping[str, Path],
        config: LlamaConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Read and check. Raises FailedPrecondition BAD_ADAPTER."""
        self.ref, self.bytes = ref, 0
        self._least = 1
        self._pairs: dict[tuple[int, str], tuple[Linear, Linear]] = {}
        scale, found = _read(ref, files)
        widths = _widths(config)
        for layer in range(config.layers):
            for stack, names in _STACKS.items():
                parts = [found.pop((layer, name), None) for name in names]
                if any(part is not None for part in parts):
                    shapes = [widths[name] for name in names]
                    down, up = _stacked(ref, config, names, parts, shapes, scale)
                    self._add((layer, stack), down.to(device, dtype), up.to(device, dtype))
        if found:
            layer, name = next(iter(found))
            raise bad(ref, f"it changes {name}_proj of layer {layer}, which this model has not")

    def delta(self, layer: int, stack: str, x: Tensor) -> Tensor | None:
        """Return what is added to the product of `x` [rows, in] with a stack of a layer, if any."""
        pair = self._pairs.get((layer, stack))
        if pair is None:
            return None
        rows = len(x)
        if rows < self._least:
            x = torch.cat((x, x.new_zeros(self._least - rows, x.shape[1])))
        return pair[1](pair[0](x.to(self._dtype).contiguous()))[:rows]

    def _add(self, key: tuple[int, str], down: Tensor, up: Tensor) -> None:
        self._dtype = down.dtype
        self._pairs[key] = Linear(down), Linear(up)
        self.bytes += (down.numel() + up.numel()) * down.dtype.itemsize
        if down.device.type == "cpu" and len(self._pairs) <= len(_STACKS):
            # As the model's own products: a row's numbers must not depend on its neighbours.
            seeded = torch.Generator().manual_seed(0)
            noise = torch.randn(PROBE_ROWS, down.shape[1], generator=seeded).to(down.dtype)
            both = self._pairs[key]
            self._least = max(
                self._least, invariant_rows(lambda x: both[1](both[0](x)), noise) or 1
            )


def bad(ref: str, why: str) -> FailedPrecondition:
    """Return the error that names the adapter."""
    return FailedPrecondition("BAD_ADAPTER", f"{ref} cannot be used as an adapter here: {why}.")


def _read(
    ref: str, files: Mapping[str, Path]
) -> tuple[float, dict[tuple[int, str], dict[str, Tensor]]]:
    """Return the scale, and the matrices A and B of each layer's places."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    # Storage may have given the weights another name than PEFT's adapter_model.safetensors.
    weights = [path for name, path in files.items() if name.endswith(_WEIGHTS)]
    if CONFIG not in files or len(weights) != 1:
        raise bad(ref, f"it has not {CONFIG} and one file of tensors, as PEFT saves them")
    try:
        settings = json.loads(files[CONFIG].read_bytes())
        tensors = load_file(weights[0])
    except (ValueError, RecursionError, SafetensorError) as error:
        raise bad(ref, f"its files are damaged ({error})") from error
    scale = _scale(ref, settings)
    found: dict[tuple[int, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or tensor.dim() != 2:
            raise bad(ref, f"it has the tensor {name[:100]}, which is no LoRA of a linear layer")
        if not bool(torch.isfinite(tensor).all()):
            raise bad(ref, f"{name[:100]} holds numbers that are not finite")
        found.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor.float()
    if not found:
        raise bad(ref, "it has no matrices")
    for (layer, place), pair in found.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise bad(ref, f"A and B of {place}_proj of layer {layer} do not fit together")
    return scale, found


def _scale(ref: str, settings: Any) -> float:
    if not isinstance(settings, dict) or settings.get("peft_type", "LORA") != "LORA":
        raise bad(ref, f"{CONFIG} is not that of a LoRA adapter")
    for name in ("use_dora", "fan_in_fan_out", "alpha_pattern", "rank_pattern", "modules_to_save"):
        if settings.get(name):
            raise bad(ref, f"its {name} is not supported")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise bad(ref, f"{CONFIG} says no rank or no lora_alpha")
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _widths(c: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Return the outputs and inputs of each matrix."""
    heads, kv_heads = c.heads * c.head_dim, c.kv_heads * c.head_dim
    return {
        "q": (heads, c.hidden),
        "k": (kv_heads, c.hidden),
        "v": (kv_heads, c.hidden),
        "o": (c.hidden, heads),
        "gate": (c.ffn, c.hidden),
        "up": (c.ffn, c.hidden),
        "down": (c.hidden, c.ffn),
    }


def _stacked(
    ref: str,
    config: LlamaConfig,
    names: tuple[str, ...],
    parts: list[dict[str, Tensor] | None],
    shapes: list[tuple[int, int]],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return A [ranks, in] and B [out, ranks] of a stack; B is zero where A is another's."""
    ranks = sum(len(part["A"]) for part in parts if part is not None)
    up = torch.zeros(sum(out for out, _ in shapes), ranks)
    downs, row, column = [], 0, 0
    for name, part, (out, width) in zip(names, parts, shapes, strict=True):
        if part is not None:
            a, b = part["A"], part["B"]
            if a.shape[1] != width or b.shape[0] != out:
                raise bad(
                    ref,
                    f"{name}_proj has {a.shape[1]} inputs and {b.shape[0]} outputs, that of the "
                    f"model {width} and {out}: it was made for another model",
                )
            if name in ("q", "k"):  # PEFT has halves of a head, the model neighbouring pairs
                b = b.reshape(-1, 2, config.head_dim // 2, b.shape[1]).transpose(1, 2)
                b = b.reshape(out, -1)
            up[row : row + out, column : column + len(a)] = b * scale
            downs.append(a)
            column += len(a)
        row += out
    return torch.cat(downs).contiguous(), up
