"""Which engine runs a model version. Engines are imported when one is needed, never before."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol, cast

from llmos.lib.errors import FailedPrecondition

if TYPE_CHECKING:  # it needs NumPy, and the manager does without
    from llmos.servers.execution.engine.base import Engine, ModelSpec

_ENGINES = {
    ("gguf", "generate"): "torch",
    ("safetensors", "generate"): "torch",
    ("onnx", "embed"): "onnx",
    ("onnx", "predict"): "onnx",
    ("torchscript", "predict"): "module",
    ("torch_export", "predict"): "module",
    ("pipeline", "predict"): "pipeline",
    ("python", "predict"): "python",
}
_NEEDS = {
    "torch": ("numpy", "setproctitle", "torch", "tokenizers"),
    "onnx": ("numpy", "setproctitle", "onnxruntime"),
    "pipeline": ("numpy", "setproctitle"),
    "python": ("numpy", "setproctitle"),
    "module": ("numpy", "setproctitle", "torch"),
}
_ABLE = (
    "torch runs causal language models (GGUF, safetensors), onnx runs ONNX models, module runs "
    "TorchScript and torch.export models, pipeline runs pipelines of models, python runs classes"
)


class EngineModule(Protocol):
    """What `llmos.servers.execution.engine.<name>` offers."""

    def check(self, spec: ModelSpec) -> None:
        """Raise FailedPrecondition NO_ENGINE when this engine cannot run the model after all."""

    def estimate_bytes(self, spec: ModelSpec) -> int:
        """Return the memory it will take on its device, bytes."""

    def load(self, spec: ModelSpec) -> Engine:
        """Load it; blocks."""


def engine_for(format: str, task: str) -> str:
    """Return the name of the engine for such models; "" when there is none."""
    return _ENGINES.get((format, task), "")


def require(ref: str, format: str, task: str) -> str:
    """Return the name of the engine for a version; imports nothing.

    Raises FailedPrecondition NO_ENGINE, MISSING_EXTRA.
    """
    name = engine_for(format, task)
    if not name:
        hint = ""
        if format == "safetensors" and task == "embed":
            hint = "; export it to ONNX by an optimizer job first"
        raise FailedPrecondition(
            "NO_ENGINE",
            f"No engine runs {ref}, a {format or 'unknown'} model for "
            f"{task or 'an unknown task'}: {_ABLE}{hint}.",
        )
    for package in _NEEDS[name]:
        if find_spec(package) is None:
            raise missing_extra(ref, name, package)
    return name


def module_for(spec: ModelSpec) -> EngineModule:
    """Import and return the engine that runs `spec`.

    Raises as `require`; ModuleNotFoundError when what is installed is broken.
    """
    name = require(spec.ref, spec.format, spec.task)
    module = importlib.import_module(f"llmos.servers.execution.engine.{name}")
    return cast(EngineModule, module)


def remember(spec: ModelSpec) -> bool:
    """Read now, in the process that forks workers, what all workers of these files would read.

    For files that a worker has read without harm. Returns whether there is any such thing; raises
    as `EngineModule.load`.
    """
    if engine_for(spec.format, spec.task) != "torch":
        return False
    from llmos.servers.execution.engine import torch

    torch.remember(spec)
    return True


def missing_extra(ref: str, engine: str, package: str) -> FailedPrecondition:
    """Return the error for an engine whose package is not installed."""
    return FailedPrecondition(
        "MISSING_EXTRA",
        f"The {engine} engine for {ref} needs the package {package}, which is not installed: "
        "pip install 'llmos[execution]'.",
    )
