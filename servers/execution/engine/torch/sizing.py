"""How much memory a model takes, and in which precision it runs. Imports no torch."""

from __future__ import annotations

import functools
from pathlib import Path

from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.torch.config import LlamaConfig

DTYPES = {"float32": 4, "bfloat16": 2}
KV_TOKENS = 16_384  # positions of all running sequences together, unless the context is longer
WORKSPACE = 128 << 20  # activations, tokenizer, the tensor being unpacked


@functools.cache
def cpu_has_bf16() -> bool:
    """Say whether this CPU multiplies bfloat16 in hardware; without, fp32 is faster and exact."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text("utf-8", "replace").split() if info.exists() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve_dtype(dtype: str, device: str) -> str:
    """Return `float32` or `bfloat16` for `auto`, else what was asked for."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.startswith("cuda") or cpu_has_bf16() else "float32"


def context_of(spec: ModelSpec, config: LlamaConfig) -> int:
    """Return the longest sequence served: the file's limit, or less if the spec says so."""
    return min(spec.context_length or config.context, config.context)


def kv_tokens(context: int) -> int:
    """Return how many positions the KV cache may hold in all: at least one full context."""
    return max(context, min(KV_TOKENS, 8 * context))


def model_bytes(config: LlamaConfig, context: int, dtype: str) -> int:
    """Return the bytes that weights, a full KV cache and the workspace take."""
    per_token = 2 * config.layers * config.kv_heads * config.head_dim
    return DTYPES[dtype] * (config.weight_count() + per_token * kv_tokens(context)) + WORKSPACE
