"""Causal language models of the llama family between GGUF and transformers' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmos.lib.errors import InvalidArgument
from llmos.servers.optimizer.job.models import torch_folder


def load(path: Path) -> torch_folder.FirstOutput:
    """Return a GGUF model as a torch module in float32. Raises InvalidArgument BAD_MODEL_FILE."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, attn_implementation="eager"
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as exc:
        text = " ".join(str(exc).split())[:300]
        raise InvalidArgument(
            "BAD_MODEL_FILE", f"transformers cannot read the GGUF file: {text}"
        ) from exc
    names = ["input_ids", "attention_mask"]
    return torch_folder.FirstOutput(model.float(), names, "generate").eval()


def to_folder(path: Path, target: Path) -> None:
    """Write model.safetensors, config.json, tokenizer.json and tokenizer_config.json."""
    from safetensors.torch import save_file

    module = load(path)
    tokenizer(path, target)
    config: dict[str, Any] = module.model.config.to_dict()
    config.pop("quantization_config", None)
    config |= {"architectures": [type(module.model).__name__], "dtype": "float32"}
    tied = bool(config.get("tie_word_embeddings"))
    weights = {
        name: tensor.contiguous()
        for name, tensor in module.model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    (target / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    temporary = target / "model.tmp"
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.replace(target / "model.safetensors")


def tokenizer(path: Path, target: Path) -> None:
    """Write a GGUF file's tokenizer as tokenizer.json with its chat template beside it.

    The library converts the vocabulary but not the rule by which text is cut before: SmolLM cuts
    numbers into digits.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    field = GGUFReader(path).fields.get("tokenizer.ggml.pre")
    kind = str(field.contents()) if field is not None else ""
    backend = found.backend_tokenizer
    if kind == "smollm":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    target.mkdir(parents=True, exist_ok=True)
    backend.save(str(target / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": found.chat_template,
        "bos_token": found.bos_token,
        "eos_token": found.eos_token,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(about, indent=1))
