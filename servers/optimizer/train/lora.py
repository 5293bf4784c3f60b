"""Low-rank additions to linear layers (LoRA, Hu et al. 2021), kept in PEFT's file format.

y = W x + (alpha / rank) B A x      A: (rank, in), random; B: (out, rank), zero at first
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.lib.errors import InvalidArgument

RANK, ALPHA = 8, 16.0
_HEADS = ("lm_head", "classifier", "score", "pooler")


class LoraLinear(nn.Module):
    """A frozen linear layer with an addition that learns."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        """Wrap `base`; the sum is the same as before at first."""
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.dropout = nn.Dropout(dropout)
        self.scale = alpha / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add both."""
        out: torch.Tensor = self.base(x)
        added: torch.Tensor = self.lora_B(self.lora_A(self.dropout(x)))
        return out + self.scale * added

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the base with the addition added in."""
        self.base.weight += self.scale * (self.lora_B.weight @ self.lora_A.weight)
        return self.base


def add(model: nn.Module, spec: pb.Lora) -> list[str]:
    """Freeze a model and add to its layers; return the last parts of their names.

    Heads of classifiers are not frozen. Raises InvalidArgument BAD_SPEC.
    """
    model.requires_grad_(False)
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    wanted = {
        name: layer
        for name, layer in linear.items()
        if (name.rpartition(".")[2] in spec.targets)
        or (not spec.targets and not any(part in _HEADS for part in name.split(".")))
    }
    ends = {name.rpartition(".")[2] for name in linear}
    if missing := set(spec.targets) - ends:
        raise InvalidArgument(
            "BAD_SPEC",
            f"fine_tune.lora.targets has {sorted(missing)[0]!r}; the model's linear layers are "
            f"{', '.join(sorted(ends))}.",
        )
    for name, layer in wanted.items():
        _replace(
            model,
            name,
            LoraLinear(layer, spec.rank or RANK, spec.alpha or ALPHA, spec.dropout),
        )
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("classifier", "score"):
            module.requires_grad_(True)
    return sorted({name.rpartition(".")[2] for name in wanted})


def save(model: nn.Module, spec: pb.Lora, targets: list[str], base: str, folder: Path) -> None:
    """Write the additions as PEFT does: adapter_model.safetensors and adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            for part in ("lora_A", "lora_B"):
                weight = getattr(module, part).weight
                tensors[f"base_model.model.{name}.{part}.weight"] = weight.detach().cpu()
        elif name.rpartition(".")[2] in ("classifier", "score") and name.count(".") == 0:
            for part, tensor in module.state_dict().items():
                tensors[f"base_model.model.{name}.{part}"] = tensor.detach().cpu()
    save_file(
        {name: t.contiguous() for name, t in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    heads = [name for name in ("classifier", "score") if hasattr(model, name)]
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if heads else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank or RANK,
        "lora_alpha": spec.alpha or ALPHA,
        "lora_dropout": spec.dropout,
        "target_modules": targets,
        "modules_to_save": heads or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def merge(model: nn.Module) -> None:
    """Add the additions in, and take them away."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            _replace(model, name, module.merged())


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
