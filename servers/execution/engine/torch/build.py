"""Builds a Llama from a model file: reads ahead in threads while the weights are repacked."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmos.servers.execution.engine.torch.config import LlamaConfig, RopeScaling
from llmos.servers.execution.engine.torch.linear import Linear
from llmos.servers.execution.engine.torch.model import Layer, Llama
from llmos.servers.execution.engine.torch.weights import Float32, Weights


@dataclass(frozen=True)
class _Raw:
    """One layer's arrays as read."""

    attn_norm: Float32
    qkv: Float32
    qkv_bias: Float32 | None
    out: Float32
    ffn_norm: Float32
    gate_up: Float32
    down: Float32


def build(
    config: LlamaConfig, weights: Weights, device: torch.device, dtype: torch.dtype, threads: int
) -> Llama:
    """Read, check and repack all weights.

    Raises Unavailable LOAD_FAILED when a tensor is missing, misshapen or not finite.
    """

    def place(array: Float32) -> Tensor:
        return torch.from_numpy(array).to(device=device, dtype=dtype)

    layers: list[Layer] = []
    with ThreadPoolExecutor(threads, "read-weights") as pool:
        head = pool.submit(_read_head, config, weights)
        queue: list[Future[_Raw]] = []
        for i in range(config.layers):
            # A few layers ahead, not all: what was read and not yet packed is held twice.
            while len(queue) < min(i + threads + 1, config.layers):
                queue.append(pool.submit(_read_layer, config, weights, len(queue)))
            raw = queue[i].result()
            queue[i] = Future()
            bias = None if raw.qkv_bias is None else place(raw.qkv_bias)
            layers.append(
                Layer(
                    attn_norm=place(raw.attn_norm),
                    qkv=Linear(place(raw.qkv), bias),
                    out=Linear(place(raw.out)),
                    ffn_norm=place(raw.ffn_norm),
                    gate_up=Linear(place(raw.gate_up)),
                    down=Linear(place(raw.down)),
                )
            )
        embedding, output = (place(array) for array in head.result())
    norm = place(weights.read(["output_norm.weight"], [config.hidden]))
    frequencies = _frequencies(config, weights).to(device)
    return Llama(config, embedding, layers, norm, Linear(output), frequencies)


def _read_head(c: LlamaConfig, weights: Weights) -> tuple[Float32, Float32]:
    embedding = weights.read(["token_embd.weight"], [c.vocab], c.hidden)
    if c.tied:
        return embedding, embedding
    return embedding, weights.read(["output.weight"], [c.vocab], c.hidden)


def _read_layer(c: LlamaConfig, weights: Weights, i: int) -> _Raw:
    def read(names: str, rows: list[int], *width: int, kind: str = "weight") -> Float32:
        return weights.read([f"blk.{i}.{name}.{kind}" for name in names.split()], rows, *width)

    heads, kv_heads = c.heads * c.head_dim, c.kv_heads * c.head_dim
    rows = [heads, kv_heads, kv_heads]
    return _Raw(
        attn_norm=read("attn_norm", [c.hidden]),
        qkv=_interleave(c, read("attn_q attn_k attn_v", rows, c.hidden)),
        qkv_bias=_interleave(c, read("attn_q attn_k attn_v", rows, kind="bias"))
        if c.qkv_bias
        else None,
        out=read("attn_output", [c.hidden], heads),
        ffn_norm=read("ffn_norm", [c.hidden]),
        gate_up=read("ffn_gate ffn_up", [c.ffn, c.ffn], c.hidden),
        down=read("ffn_down", [c.hidden], c.ffn),
    )


def _interleave(c: LlamaConfig, qkv: Float32) -> Float32:
    """Bring the halves of each q and k head into neighbouring pairs; v stays."""
    if c.interleaved:
        return qkv
    end = (c.heads + c.kv_heads) * c.head_dim
    halves = qkv[:end].reshape(-1, 2, c.head_dim // 2, *qkv.shape[1:])
    qkv[:end] = np.swapaxes(halves, 1, 2).reshape(end, *qkv.shape[1:])
    return qkv


def _frequencies(c: LlamaConfig, weights: Weights) -> Tensor:
    """Return radians per position of each rotated pair, float32 [head_dim / 2]."""
    powers = torch.arange(0, c.head_dim, 2, dtype=torch.int64).float() / c.head_dim
    plain = 1.0 / (c.rope_base**powers)
    if weights.has("rope_freqs.weight"):  # GGUF has llama3's rule worked out
        factors = weights.read(["rope_freqs.weight"], [c.head_dim // 2])
        return plain / torch.from_numpy(factors)
    if c.rope_scaling is None:
        return plain
    if c.rope_scaling.kind == "linear":
        return plain / c.rope_scaling.factor
    return _llama3(plain, c.rope_scaling)


def _llama3(plain: Tensor, rule: RopeScaling) -> Tensor:
    """Slow down long waves by the factor, leave short ones, and blend in between."""
    wavelength = 2 * math.pi / plain
    blend = (rule.original_context / wavelength - rule.low) / (rule.high - rule.low)
    blend = blend.clamp(0, 1)
    return (1 - blend) * plain / rule.factor + blend * plain
