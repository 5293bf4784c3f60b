"""The ONNX engine: any ONNX model on tensors, text encoders on text. Light until `load`."""

from __future__ import annotations

from importlib.util import find_spec

from llmos.lib.errors import FailedPrecondition
from llmos.servers.execution.engine.base import Engine, ModelSpec

__all__ = ["check", "estimate_bytes", "is_weights", "load"]

_MIB = 1 << 20
_RUNTIME = 64 * _MIB  # session, allocator, tokenizer
_PREDICT = 64 * _MIB  # activations of a model that nothing is known about
_EMBED = 192 * _MIB  # activations of one full batch of a MiniLM-sized encoder, measured


def check(spec: ModelSpec) -> None:
    """Say whether this engine can run a version; loads nothing.

    Raises FailedPrecondition NO_ENGINE (wrong format or task), MISSING_EXTRA.
    """
    if spec.format != "onnx" or spec.task not in ("embed", "predict"):
        raise FailedPrecondition(
            "NO_ENGINE",
            f"{spec.ref} is a {spec.format} model for {spec.task or 'no known task'}; the onnx "
            "engine runs ONNX models for embed and predict.",
        )
    needed = ["onnxruntime", *(["tokenizers"] if spec.task == "embed" else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise FailedPrecondition(
            "MISSING_EXTRA",
            f"{spec.ref} needs {' and '.join(missing)}, not installed; "
            "pip install 'llmos[execution]'.",
        )


def estimate_bytes(spec: ModelSpec) -> int:
    """Return about how much memory a worker with this version takes, bytes, on its device.

    The weights once, prepacked copies of a quarter of them, one batch of activations.
    """
    weights = sum(p.stat().st_size for n, p in spec.files.items() if is_weights(n))
    return weights * 5 // 4 + _RUNTIME + (_EMBED if spec.task == "embed" else _PREDICT)


def is_weights(name: str) -> bool:
    """Return whether a file of a version has weights, by its name."""
    return not name.endswith((".json", ".txt", ".md", ".toml"))


def load(spec: ModelSpec) -> Engine:
    """Load a version and answer the engine that runs it. Blocks; call it before serving.

    Raises as `check`, and Unavailable LOAD_FAILED with what is wrong with the files.
    """
    check(spec)
    from llmos.servers.execution.engine.onnx.engine import OnnxEngine

    return OnnxEngine(spec)
