"""Names and row orders of a Llama's tensors in GGUF and in transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

PARTS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "model.layers.{}.input_layernorm",
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}


def torch_name(tensor: str) -> str:
    """Return the layer that a GGUF tensor belongs to, as torch names it; "" when not known."""
    words = tensor.removesuffix(".weight").split(".")
    layer = words[1] if words[0] == "blk" else ""
    return PARTS.get(words[-1], "").format(layer)


def paired(values: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Return rows in GGUF's order: the two rows that are rotated together are neighbours."""
    rows, width = values.shape
    halves = values.reshape(heads, 2, rows // heads // 2, width)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, width))


def halves(values: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Undo `paired`."""
    rows, width = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, width)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, width))
