"""Transformers: fresh ones from a spec, registered ones from their files.

No network is asked, and no code of theirs is run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before the import: nothing may be asked of the network

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as noise

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.lib.errors import InvalidArgument

noise.set_verbosity_error()
noise.disable_progress_bar()

PAD, EOS, BOS = "<pad>", "</s>", "<s>"
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".onnx", ".gguf")


def fresh(network: str, spec: pb.Transformer, vocabulary: int, tokens: int, classes: int) -> Any:
    """Return a Transformer with random weights. Ids 0, 1, 2 are PAD, EOS and BOS."""
    layers, width, heads = spec.layers or 2, spec.width or 128, spec.heads or 4
    common = {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    if network == "encoder":
        return BertForSequenceClassification(
            BertConfig(
                **common,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                max_position_embeddings=tokens,
                hidden_dropout_prob=spec.dropout,
                attention_probs_dropout_prob=spec.dropout,
                num_labels=classes,
                attn_implementation="eager",
            )
        )
    if network == "decoder":
        return LlamaForCausalLM(
            LlamaConfig(
                **common,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                intermediate_size=-(-8 * width // 3 // 32) * 32,
                max_position_embeddings=max(tokens, 2048),
                attention_dropout=spec.dropout,
                tie_word_embeddings=True,
            )
        )
    model = MBartForConditionalGeneration(
        MBartConfig(
            **common,
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            max_position_embeddings=tokens + 2,
            dropout=spec.dropout,
            decoder_start_token_id=2,
            forced_eos_token_id=1,
        )
    )
    for part in (model.model.encoder, model.model.decoder):
        _waves(part.embed_positions.weight, model.config.init_std)
    return model


def _waves(weight: torch.Tensor, deviation: float) -> None:
    """Let places begin as sines and cosines (Vaswani et al. 2017, 3.5), as strong as tokens.

    Places that are near are alike from the first step, so few texts teach what stands where.
    """
    rows, width = weight.shape
    speeds = torch.exp(-math.log(10_000) / width * torch.arange(0, width, 2))
    turns = torch.arange(rows)[:, None] * speeds
    with torch.no_grad():
        weight[:, 0::2] = math.sqrt(2) * deviation * turns.sin()
        weight[:, 1::2] = math.sqrt(2) * deviation * turns.cos()[:, : width // 2]


def load(folder: Path, classes: Sequence[str]) -> Any:
    """Return the model in a folder in float32: with classes a classifier, else a language model.

    Raises InvalidArgument BAD_MODEL_FILE.
    """
    kind = AutoModelForSequenceClassification if classes else AutoModelForCausalLM
    options: dict[str, Any] = {"local_files_only": True, "dtype": torch.float32}
    if gguf := gguf_file(folder):
        options["gguf_file"] = gguf
    else:
        options["use_safetensors"] = True
    if classes:
        options.update(num_labels=len(classes), ignore_mismatched_sizes=True)
    try:
        model = kind.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as exc:
        text = " ".join(str(exc).split())[:300]
        what = "a text classifier" if classes else "a causal language model"
        raise InvalidArgument(
            "BAD_MODEL_FILE", f"The source cannot be loaded as {what}: {text}"
        ) from exc
    if classes:
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: i for i, name in enumerate(classes)}
    model.config.quantization_config = None
    return model


def gguf_file(folder: Path) -> str:
    """Return the name of a folder's GGUF file; empty when it has none."""
    return next((path.name for path in sorted(folder.glob("*.gguf"))), "")


def tokenizer_of(folder: Path, out: Path) -> Tokenizer:
    """Return a model's tokenizer; its files are written to `out`.

    Raises InvalidArgument BAD_MODEL_FILE when there is none.
    """
    out.mkdir(parents=True, exist_ok=True)
    if gguf := gguf_file(folder):
        if not (out / "tokenizer.json").exists():
            _from_gguf(folder, gguf, out)
    else:
        for name in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
            if (folder / name).exists():
                (out / name).write_bytes((folder / name).read_bytes())
        if not (folder / "tokenizer.json").exists():
            raise InvalidArgument("BAD_MODEL_FILE", "The model has no tokenizer.json; add one.")
        (out / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    found: Tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    return found


def _from_gguf(folder: Path, gguf: str, out: Path) -> None:
    whole = AutoTokenizer.from_pretrained(folder, gguf_file=gguf, local_files_only=True)
    from gguf import GGUFReader

    field = GGUFReader(folder / gguf).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() in ("smollm", "smollm2"):
        # transformers takes every pre-tokenizer for GPT-2's; this one splits digits first.
        whole.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    whole.save_pretrained(out)


def train_tokenizer(texts: Any, vocabulary: int, out: Path) -> Tokenizer:
    """Train a byte-pair encoding on texts and write its files to `out`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, EOS, BOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    out.mkdir(parents=True, exist_ok=True)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, bos_token=BOS
    )
    whole.save_pretrained(out)
    return tokenizer


def save(model: Any, folder: Path) -> None:
    """Write config.json and model.safetensors; weights that are tied are written once."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    (folder / "config.json").write_text(model.config.to_json_string())
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.detach().cpu().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut(model: Any, layers: int) -> None:
    """Leave a language model or classifier so many of its layers, spread evenly, first and last.

    Raises InvalidArgument BAD_SPEC.
    """
    base = getattr(model, model.base_model_prefix)
    holder = getattr(base, "encoder", base)
    for name in ("layers", "layer"):
        if hasattr(holder, name):
            break
    else:
        raise InvalidArgument("BAD_SPEC", f"{type(model).__name__} has no layers to cut.")
    all_layers = getattr(holder, name)
    if not 1 <= layers < len(all_layers):
        raise InvalidArgument(
            "BAD_SPEC", f"distil.layers is {layers}; the teacher has {len(all_layers)} layers."
        )
    last = len(all_layers) - 1
    kept = [round(i * last / max(1, layers - 1)) for i in range(layers)]
    setattr(holder, name, torch.nn.ModuleList(all_layers[i] for i in kept))
    for index, layer in enumerate(getattr(holder, name)):  # caches are found by it
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
