"""What a causal model of the llama family looks like, read from GGUF or config.json.

Imports neither torch nor gguf, so that the execution manager can check and size models.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.lib.errors import FailedPrecondition
from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.torch import known
from llmos.servers.execution.engine.torch.gguf_header import GgufHeader, damaged, read_header

_HF = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
SUPPORTED = "llama, mistral, qwen2 and qwen3"


@dataclass(frozen=True)
class RopeScaling:
    """The `llama3` frequency rule, or `linear` when only factor counts."""

    kind: str
    factor: float
    low: float = 1.0
    high: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """Shapes and constants. Lengths are tokens; head_dim is the width of one head."""

    architecture: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_base: float
    eps: float
    tied: bool  # the output matrix is the embedding
    qkv_bias: bool
    interleaved: bool  # q/k rows come in GGUF's order: rotated pairs are neighbours
    rope_scaling: RopeScaling | None = None
    qk_norm: bool = False  # queries and keys are normalised by head

    def weight_count(self) -> int:
        """Return the number of weights held in memory; a tied embedding counts twice (packed)."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        layer = self.hidden * (qkv + self.heads * self.head_dim + 3 * self.ffn)
        return self.layers * layer + 2 * self.vocab * self.hidden


def read_config(spec: ModelSpec, *, arrays: bool = False) -> tuple[LlamaConfig, GgufHeader | None]:
    """Return the shapes, and for GGUF the header, with metadata arrays if asked for.

    Raises FailedPrecondition NO_ENGINE for other formats and architectures, Unavailable
    LOAD_FAILED for files that cannot be read.
    """
    if not arrays and (reading := known.recall(spec)) is not None:
        return reading.config, reading.header
    if spec.format == "gguf":
        path = main_file(spec, ".gguf")
        header = read_header(path) if arrays else _brief(path, path.stat().st_mtime_ns)
        return _consistent(from_gguf(spec, path, header)), header
    if spec.format == "safetensors":
        return _consistent(from_hf(spec, read_json(spec, "config.json"))), None
    raise _no_engine(spec, f"its format {spec.format!r} is neither gguf nor safetensors")


@functools.lru_cache(maxsize=1)  # a worker checks a model and then sizes it
def _brief(path: Path, _mtime_ns: int) -> GgufHeader:
    return read_header(path, arrays=False)


def _consistent(config: LlamaConfig) -> LlamaConfig:
    if config.heads % config.kv_heads or config.head_dim % 2:
        raise damaged(
            Path("configuration"),
            f"{config.heads} heads do not share {config.kv_heads} key heads evenly, or the head "
            f"width {config.head_dim} is odd",
        )
    return config


def main_file(spec: ModelSpec, suffix: str) -> Path:
    """Return the first file whose name within the version ends with `suffix`."""
    for name, path in spec.files.items():
        if name.lower().endswith(suffix):
            return path
    raise damaged(Path(spec.ref), f"the version has no file that ends with {suffix}")


def read_json(spec: ModelSpec, name: str) -> dict[str, Any]:
    """Return a JSON object of the version. Raises Unavailable LOAD_FAILED."""
    path = main_file(spec, name)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise damaged(Path(name), f"it is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise damaged(Path(name), "it is not a JSON object")
    return value


def from_gguf(spec: ModelSpec, path: Path, header: GgufHeader) -> LlamaConfig:
    """Read the shapes from GGUF metadata."""
    meta = header.metadata
    arch = meta.get("general.architecture")
    if arch not in ("llama", "qwen2", "qwen3"):
        raise _no_engine(spec, f"its architecture is {arch!r}")
    if meta.get(f"{arch}.expert_count", 0):
        raise _no_engine(spec, "it is a mixture of experts")
    if (scaling := meta.get(f"{arch}.rope.scaling.type", "none")) not in ("none", "linear"):
        raise _no_engine(spec, f"its rope scaling is {scaling!r}")
    get = _Getter(path, meta, f"{arch}.")
    heads, hidden = get.count("attention.head_count"), get.count("embedding_length")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise damaged(path, "it has no tensor token_embd.weight")
    head_dim = get.count("attention.key_length", hidden // heads)
    if get.count("rope.dimension_count", head_dim) != head_dim:
        raise _no_engine(spec, "it rotates only a part of each head")
    linear = get.number("rope.scaling.factor", 1.0)
    return LlamaConfig(
        architecture=arch,
        layers=get.count("block_count"),
        hidden=hidden,
        ffn=get.count("feed_forward_length"),
        heads=heads,
        kv_heads=get.count("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab=embedding.shape[0],
        context=_window(get.count("context_length"), get.count("attention.sliding_window", 0)),
        rope_base=get.number("rope.freq_base", 10000.0),
        eps=get.number("attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in header.tensors,
        qkv_bias="blk.0.attn_q.bias" in header.tensors,
        interleaved=arch == "llama",
        rope_scaling=RopeScaling("linear", linear) if scaling == "linear" else None,
        qk_norm=arch == "qwen3",
    )


def from_hf(spec: ModelSpec, raw: Mapping[str, Any]) -> LlamaConfig:
    """Read the shapes from a config.json of a Hugging Face directory."""
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    arch = _HF.get(str(name))
    if arch is None:
        raise _no_engine(spec, f"its architecture is {name!r}")
    if raw.get("mlp_bias") or raw.get("attention_bias"):
        raise _no_engine(spec, "its linear layers have a bias")
    if raw.get("hidden_act", "silu") != "silu":
        raise _no_engine(spec, f"its activation is {raw['hidden_act']!r}")
    if "quantization_config" in raw:
        raise _no_engine(spec, "its safetensors are quantised; import the plain or a GGUF version")
    given = raw.get("rope_parameters") or raw.get("rope_scaling")
    rope = {"rope_theta": raw.get("rope_theta", 10000.0)}
    rope |= given if isinstance(given, dict) else {}
    get, ropes = _Getter(Path("config.json"), raw), _Getter(Path("config.json"), rope)
    heads, hidden = get.count("num_attention_heads"), get.count("hidden_size")
    window = get.count("sliding_window", 0)
    if arch in ("qwen2", "qwen3") and not raw.get("use_sliding_window"):
        window = 0
    return LlamaConfig(
        architecture=arch,
        layers=get.count("num_hidden_layers"),
        hidden=hidden,
        ffn=get.count("intermediate_size"),
        heads=heads,
        kv_heads=get.count("num_key_value_heads", heads),
        head_dim=get.count("head_dim", hidden // heads),
        vocab=get.count("vocab_size"),
        context=_window(get.count("max_position_embeddings", 2048), window),
        rope_base=ropes.number("rope_theta"),
        eps=get.number("rms_norm_eps", 1e-6),
        tied=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=arch == "qwen2",
        interleaved=False,
        rope_scaling=_hf_scaling(spec, ropes, rope.get("rope_type", rope.get("type", "default"))),
        qk_norm=arch == "qwen3",
    )


def _hf_scaling(spec: ModelSpec, rope: _Getter, kind: str) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", rope.number("factor"))
    if kind != "llama3":
        raise _no_engine(spec, f"its rope scaling is {kind!r}")
    return RopeScaling(
        "llama3",
        rope.number("factor"),
        rope.number("low_freq_factor"),
        rope.number("high_freq_factor"),
        rope.count("original_max_position_embeddings"),
    )


def _window(context: int, window: int) -> int:
    # Within a window, sliding attention is full attention: serve that much, exactly.
    return min(context, window) if window else context


class _Getter:
    """Typed reads of metadata; a missing or wrong value is a damaged file."""

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self._path, self._values, self._prefix = path, values, prefix

    def number(self, key: str, default: float | None = None) -> float:
        value = self._values.get(self._prefix + key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
            raise damaged(self._path, f"{self._prefix}{key} is {value!r}, not a positive number")
        return float(value)

    def count(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value != int(value) or (value == 0 and default != 0):
            raise damaged(
                self._path, f"{self._prefix}{key} is {value!r}, not a whole number over 0"
            )
        return int(value)


def _no_engine(spec: ModelSpec, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        "NO_ENGINE",
        f"The torch engine cannot run {spec.ref}: {why}; it runs causal models of the "
        f"architectures {SUPPORTED} from GGUF or safetensors.",
    )
