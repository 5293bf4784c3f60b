"""Which engine runs a model version. Engines are imported when one is needed, never before."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from llmos.lib.errors import FailedPrecondition
from llmos.servers.execution.engine.base import Engine, ModelSpec

_ENGINES = {
    ("gguf", "generate"): "torch",
    ("safetensors", "generate"): "torch",
    ("onnx", "embed"): "onnx",
    ("onnx", "predict"): "onnx",
}
_ABLE = "torch runs causal language models (GGUF, safetensors), onnx runs ONNX models"


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


def module_for(spec: ModelSpec) -> EngineModule:
    """Import and return the engine that runs `spec`.

    Raises FailedPrecondition NO_ENGINE; ModuleNotFoundError (see `missing_extra`).
    """
    name = engine_for(spec.format, spec.task)
    if not name:
        hint = ""
        if spec.format == "safetensors" and spec.task == "embed":
            hint = "; export it to ONNX by an optimizer job first"
        raise FailedPrecondition(
            "NO_ENGINE",
            f"No engine runs {spec.ref}, a {spec.format or 'unknown'} model for "
            f"{spec.task or 'an unknown task'}: {_ABLE}{hint}.",
        )
    module = importlib.import_module(f"llmos.servers.execution.engine.{name}")
    return cast(EngineModule, module)


def missing_extra(ref: str, engine: str, package: str) -> FailedPrecondition:
    """Return the error for an engine whose package is not installed."""
    return FailedPrecondition(
        "MISSING_EXTRA",
        f"The {engine} engine for {ref} needs the package {package}, which is not installed: "
        "pip install 'llmos[execution]'.",
    )
