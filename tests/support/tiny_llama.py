"""A random llama that fits into a test: safetensors, config and a tokenizer of single bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD, CONTEXT = 64, 96, 2, 4, 2, 16, 256
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def tiny_llama(folder: Path, seed: int = 0, **config: Any) -> Path:
    """Write it; `config` changes its config.json and not its tensors."""
    folder.mkdir(parents=True)
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>", "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(vocab),
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(settings | config))
    save_file(weights(len(vocab), seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def weights(vocab: int, seed: int) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Return its tensors by Hugging Face's names."""
    random = np.random.default_rng(seed)
    shapes = {"model.embed_tokens": (vocab, HIDDEN), "lm_head": (vocab, HIDDEN)}
    tensors = {"model.norm.weight": np.ones(HIDDEN, np.float32)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{norm}.weight"] = np.ones(HIDDEN, np.float32)
        shapes |= {
            f"{at}.self_attn.q_proj": (HEADS * HEAD, HIDDEN),
            f"{at}.self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
            f"{at}.self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
            f"{at}.self_attn.o_proj": (HIDDEN, HEADS * HEAD),
            f"{at}.mlp.gate_proj": (FFN, HIDDEN),
            f"{at}.mlp.up_proj": (FFN, HIDDEN),
            f"{at}.mlp.down_proj": (HIDDEN, FFN),
        }
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = random.normal(0, 0.3, shape).astype(np.float32)
    return tensors
