"""Causal language models of the llama family between GGUF and transformers' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.servers.optimizer.job.models import gguf_names as names
from llmos.servers.optimizer.job.models import torch_folder


def load(path: Path) -> torch_folder.FirstOutput:
    """Return a Llama in GGUF as a torch module in float32.

    Raises FailedPrecondition WRONG_FORMAT for another architecture, InvalidArgument BAD_MODEL_FILE.
    """
    import torch
    from gguf import GGUFReader, quants
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(path)
    about = {name: field.contents() for name, field in reader.fields.items() if "." in name}
    if about.get("general.architecture") != "llama":
        raise FailedPrecondition(
            "WRONG_FORMAT",
            f"The GGUF file is of {about.get('general.architecture')}; only llama is read here.",
        )
    try:
        config = LlamaConfig(**_config(about, {t.name for t in reader.tensors}))
        weights = {}
        for tensor in reader.tensors:
            if not (name := names.torch_name(tensor.name)):
                continue  # e.g. factors of the rotation, which the configuration has
            values = np.array(quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
            if tensor.name.endswith("attn_q.weight"):
                values = names.halves(values, config.num_attention_heads)
            elif tensor.name.endswith("attn_k.weight"):
                values = names.halves(values, config.num_key_value_heads)
            weights[f"{name}.weight"] = torch.from_numpy(values)
        model = LlamaForCausalLM(config)
        missing, _ = model.load_state_dict(weights, strict=False)
        if set(missing) - {"lm_head.weight"}:
            raise ValueError(f"it lacks {sorted(missing)[0]}")
        model.tie_weights()
    except (KeyError, ValueError, NotImplementedError, RuntimeError) as exc:
        # NotImplementedError: gguf's, for kinds of quantisation that it cannot read.
        text = " ".join(str(exc).split())[:300]
        raise InvalidArgument("BAD_MODEL_FILE", f"The GGUF file cannot be read: {text}") from exc
    return torch_folder.FirstOutput(model, ["input_ids", "attention_mask"], "generate").eval()


def _config(about: dict[str, Any], tensors: set[str]) -> dict[str, Any]:
    """Return what transformers calls the numbers of the header."""
    head = "llama."
    heads = int(about[head + "attention.head_count"])
    width = int(about[head + "embedding_length"])
    return {
        "vocab_size": len(about["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": int(about[head + "feed_forward_length"]),
        "num_hidden_layers": int(about[head + "block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(about.get(head + "attention.head_count_kv", heads)),
        "head_dim": int(about.get(head + "attention.key_length", width // heads)),
        "max_position_embeddings": int(about[head + "context_length"]),
        "rms_norm_eps": float(about[head + "attention.layer_norm_rms_epsilon"]),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(about.get(head + "rope.freq_base", 10000.0)),
        },
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": about.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": about.get("tokenizer.ggml.eos_token_id"),
        "attn_implementation": "eager",
    }


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
