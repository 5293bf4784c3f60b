"""Models of the transformers library from a version's files, and back to files. Imports torch.

A model whose attention heads were pruned says so in its config.json: `pruned_heads` has for each
layer how many went; its layers are made smaller before the weights come.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before the import: nothing may be asked of the network
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from llmos.lib.errors import InvalidArgument
from llmos.servers.optimizer.train.networks import MODEL_TYPE, build

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_AUTO = {
    "generate": AutoModelForCausalLM,
    "classify": AutoModelForSequenceClassification,
    "embed": AutoModel,
    "translate": AutoModelForSeq2SeqLM,
}


class Module(nn.Module):
    """A model with the names of its inputs, in order, and what it does."""

    model: Any
    names: list[str]
    task: str


class Plain(Module):
    """A network of the kind train: one array in, one out."""

    def __init__(self, model: nn.Module, task: str) -> None:
        """Wrap."""
        super().__init__()
        self.model, self.names, self.task = model, ["x"], task

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores or numbers."""
        out: torch.Tensor = self.model(x)
        return out


class FirstOutput(Module):
    """A transformers model with its inputs in our order and its first tensor as the only output."""

    def __init__(self, model: Any, names: list[str], task: str) -> None:
        """Wrap; names: of its inputs."""
        super().__init__()
        self.model, self.names, self.task = model, names, task

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return token vectors, scores or logits."""
        inputs = dict(zip(self.names, tensors, strict=True))
        if self.task == "generate":
            inputs["use_cache"] = False  # type: ignore[assignment]
        out: torch.Tensor = self.model(**inputs, return_dict=True)[0]
        return out


def task_of(config: dict[str, Any]) -> str:
    """Return `generate`, `translate`, `classify` or `embed`, by the architecture in config.json."""
    name = (config.get("architectures") or [""])[0]
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "generate"
    if name.endswith("ForConditionalGeneration"):
        return "translate"
    return "classify" if name.endswith("ForSequenceClassification") else "embed"


def load(folder: Path) -> Module:
    """Load a safetensors model in float32, offline, without code of its own.

    Raises InvalidArgument BAD_MODEL_FILE.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        if config.get("model_type") == MODEL_TYPE:
            return _plain(folder, config)
        task, pruned = task_of(config), config.pop("pruned_heads", None) or {}
        if pruned:
            model = _AUTO[task].from_config(
                AutoConfig.for_model(**config), attn_implementation="eager"
            )
            shrink_heads(model, {int(layer): count for layer, count in pruned.items()})
            model.load_state_dict(_weights(folder), strict=False)
            model.tie_weights()
        else:
            model = _AUTO[task].from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation="eager" if task == "generate" else None,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as exc:
        text = " ".join(str(exc).split())[:300]
        raise InvalidArgument(
            "BAD_MODEL_FILE", f"transformers cannot load the source: {text}"
        ) from exc
    names = ["input_ids", "attention_mask"]
    if "token_type_embeddings" in " ".join(dict(model.named_parameters())):
        names.append("token_type_ids")
    return FirstOutput(model.float(), names, task).eval()


def _plain(folder: Path, config: dict[str, Any]) -> Plain:
    model = build(config)
    model.load_state_dict(_weights(folder))
    return Plain(model, "classify" if int(config["outputs"]) > 1 else "predict").eval()


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def save(module: Module, source: Path, target: Path, changes: dict[str, Any]) -> list[Path]:
    """Write the weights and config.json with `changes`; return both files.

    Tensors keep the names that they have in the source's files, if they are there.
    """
    target.mkdir(parents=True, exist_ok=True)
    weights, seen = {}, set()
    for name, tensor in module.model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():  # tied: once
            continue
        seen.add(tensor.data_ptr())
        weights[name] = tensor.detach().contiguous()
    config = json.loads((source / "config.json").read_text())
    for key in ("dtype", "torch_dtype", "quantization_config"):
        config.pop(key, None)
    config.update(changes, dtype="float32")
    temporary = target / "model.tmp"
    save_file(weights, temporary, metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    temporary.replace(target / "model.safetensors")
    return [target / "model.safetensors", target / "config.json"]


def attentions(model: nn.Module) -> list[nn.Module]:
    """Return a BERT-like model's attention blocks: each has `self` and `output.dense`."""
    return [
        part
        for part in model.modules()
        if hasattr(part, "self") and hasattr(getattr(part, "output", None), "dense")
    ]


def shrink_heads(model: nn.Module, pruned: dict[int, int]) -> None:
    """Make a BERT-like model's attention layers smaller; weights are to be loaded after."""
    for index, block in enumerate(attentions(model)):
        core: Any = getattr(block, "self")  # noqa: B009  it is called so
        out: Any = block.output
        kept = core.num_attention_heads - pruned.get(index, 0)
        size = kept * core.attention_head_size
        for name in ("query", "key", "value"):
            old = getattr(core, name)
            setattr(core, name, nn.Linear(old.in_features, size, old.bias is not None))
        out.dense = nn.Linear(size, out.dense.out_features, out.dense.bias is not None)
        core.num_attention_heads, core.all_head_size = kept, size
