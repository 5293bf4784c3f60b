"""How much memory a model takes, and in which precision it runs. Imports no torch."""

from __future__ import annotations

import functools
from pathlib import Path

from llmos.lib.errors import FailedPrecondition
from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.torch.config import LlamaConfig

DTYPES = {"float32": 4, "bfloat16": 2}
_ASKED = {"fp32": "float32", "bf16": "bfloat16", "float32": "float32", "bfloat16": "bfloat16"}
KV_TOKENS = 16_384  # positions of all running sequences together, unless the context is longer
WORKSPACE = 128 << 20  # activations, tokenizer, the tensor being unpacked


@functools.cache
def cpu_has_bf16() -> bool:
    """Say whether this CPU multiplies bfloat16 in hardware; without, fp32 is faster and exact."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text("utf-8", "replace").split() if info.exists() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve(precision: str, device: str) -> str:
    """Return `float32`, `bfloat16`, `int8` or `int4` for what was asked for.

    `auto` or "": what the device multiplies in hardware without rounding the weights further.
    int8 and int4 are of CPUs; on others their weights' place is taken by bfloat16.
    """
    if precision in ("", "auto"):
        return "bfloat16" if device.startswith("cuda") or cpu_has_bf16() else "float32"
    if precision in ("int8", "int4"):
        return "bfloat16" if device.startswith("cuda") else precision
    if precision not in _ASKED:
        raise FailedPrecondition(
            "NO_ENGINE",
            f"The torch engine has no precision {precision[:40]!r}; "
            "it has auto, fp32, bf16, int8 and int4.",
        )
    return _ASKED[precision]


def context_of(spec: ModelSpec, config: LlamaConfig) -> int:
    """Return the longest sequence served: the file's limit, or less if the spec says so."""
    return min(spec.context_length or config.context, config.context)


def kv_tokens(context: int) -> int:
    """Return how many positions the KV cache may hold in all: at least one full context."""
    return max(context, min(KV_TOKENS, 8 * context))


def model_bytes(config: LlamaConfig, context: int, precision: str) -> int:
    """Return the bytes that weights, a full KV cache and the workspace take."""
    per_token = 2 * config.layers * config.kv_heads * config.head_dim
    positions = per_token * kv_tokens(context)
    if precision in ("int8", "int4"):  # embedding and cache in float16, output matrix int8
        head = config.vocab * config.hidden
        layers = config.weight_count() - 2 * head
        # A float32 for 64 weights; two float16 for 32.
        packed = layers * 17 // 16 if precision == "int8" else layers * 5 // 8
        return packed + head * 17 // 16 + 2 * head + 2 * positions + WORKSPACE
    # The cache of the compiled attention is float32 whatever the weights are.
    kept = 4 if config.head_dim % 8 == 0 else DTYPES[precision]
    return DTYPES[precision] * config.weight_count() + kept * positions + WORKSPACE
