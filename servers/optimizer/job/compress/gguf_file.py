"""Writes GGUF files: another one with its tensors packed anew, or a Llama of transformers."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, TokenType, quants

from llmos.lib.errors import FailedPrecondition
from llmos.servers.optimizer.job.models import gguf_names as names
from llmos.servers.optimizer.job.models.subject import Subject
from llmos.servers.optimizer.job.models.torch_folder import Module

_FILE_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8}


def requantise(
    source: Path, target: Path, kind: GGMLQuantizationType, layers: Collection[str]
) -> None:
    """Write the file again with these layers packed as `kind`; all else as it was."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, "")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.file_type":
            continue
        array = field.types[0] == GGUFValueType.ARRAY
        writer.add_key_value(
            field.name, field.contents(), field.types[0], field.types[-1] if array else None
        )
    writer.add_file_type(_FILE_TYPES[kind.name])
    for tensor in reader.tensors:
        if names.torch_name(tensor.name) in layers:
            values = quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    _finish(writer)


def convert(
    module: Module,
    subject: Subject,
    target: Path,
    kind: GGMLQuantizationType,
    layers: Collection[str],
) -> None:
    """Write a Llama; layers that are not named stay float32.

    Raises FailedPrecondition WRONG_FORMAT for another architecture or tokenizer.
    """
    config: Any = module.model.config
    if type(module.model).__name__ != "LlamaForCausalLM":
        raise FailedPrecondition(
            "WRONG_FORMAT",
            f"{subject.ref} is a {type(module.model).__name__}; only LlamaForCausalLM can be "
            "written as GGUF.",
        )
    writer = GGUFWriter(target, "llama")
    writer.add_name(subject.version.name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(_rope_base(config))
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(_FILE_TYPES[kind.name])
    _tokenizer(writer, subject, config)
    tied = bool(config.tie_word_embeddings)
    weights = module.model.state_dict()
    for part, name in names.PARTS.items():
        if part == "output" and tied:
            continue
        places = range(config.num_hidden_layers) if "{}" in name else [-1]
        for layer in places:
            full = name.format(layer)
            values = weights[full + ".weight"].numpy()
            if part in ("attn_q", "attn_k"):
                heads = config.num_attention_heads
                values = names.paired(
                    values, heads if part == "attn_q" else config.num_key_value_heads
                )
            tensor = f"blk.{layer}.{part}.weight" if layer >= 0 else f"{part}.weight"
            if full in layers:
                writer.add_tensor(tensor, quants.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(tensor, np.ascontiguousarray(values))
    _finish(writer)


def _rope_base(config: Any) -> float:
    parameters = getattr(config, "rope_parameters", None) or {}
    return float(parameters.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0)


def _tokenizer(writer: GGUFWriter, subject: Subject, config: Any) -> None:
    path = subject.files.get("tokenizer.json")
    about = json.loads(path.read_text()) if path else {}
    model = about.get("model", {})
    if model.get("type") != "BPE":
        raise FailedPrecondition(
            "WRONG_FORMAT",
            f"{subject.ref} has no byte-pair tokenizer.json; only such can be written as GGUF.",
        )
    special = {added["id"]: added["content"] for added in about.get("added_tokens", [])}
    words = {index: word for word, index in model["vocab"].items()} | special
    tokens = [words.get(i, f"[PAD{i}]") for i in range(config.vocab_size)]
    kinds = [
        TokenType.CONTROL if i in special else TokenType.NORMAL if i in words else TokenType.UNUSED
        for i in range(config.vocab_size)
    ]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    digits = '"Digits"' in json.dumps(about.get("pre_tokenizer"))
    writer.add_tokenizer_pre("smollm" if digits else "gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for name in ("bos", "eos"):
        value = getattr(config, f"{name}_token_id", None)
        if isinstance(value, int):
            getattr(writer, f"add_{name}_token_id")(value)
    settings = subject.files.get("tokenizer_config.json")
    template = json.loads(settings.read_text()).get("chat_template") if settings else None
    if isinstance(template, str):
        writer.add_chat_template(template)


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
