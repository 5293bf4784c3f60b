"""The module engine: TorchScript and torch.export models on tensors. Light until `load`."""

from __future__ import annotations

from importlib.util import find_spec

from llmos.lib.errors import FailedPrecondition
from llmos.servers.execution.engine.base import Engine, ModelSpec

__all__ = ["FORMATS", "check", "estimate_bytes", "load"]

FORMATS = ("torchscript", "torch_export")
_MIB = 1 << 20
_RUNTIME = 96 * _MIB  # torch's own, and activations of a model that nothing is known about


def check(spec: ModelSpec) -> None:
    """Say whether this engine can run a version; loads nothing.

    Raises FailedPrecondition NO_ENGINE (wrong format or task), MISSING_EXTRA.
    """
    if spec.format not in FORMATS or spec.task != "predict":
        raise FailedPrecondition(
            "NO_ENGINE",
            f"{spec.ref} is a {spec.format} model for {spec.task or 'no known task'}; the module "
            "engine runs TorchScript and torch.export models for predict.",
        )
    if find_spec("torch") is None:
        raise FailedPrecondition(
            "MISSING_EXTRA",
            f"{spec.ref} needs torch, not installed; pip install 'llmos[execution]'.",
        )


def estimate_bytes(spec: ModelSpec) -> int:
    """Return about how much memory a worker with this version takes, bytes, on its device."""
    main = next(iter(spec.files.values()))
    return main.stat().st_size * 5 // 4 + _RUNTIME


def load(spec: ModelSpec) -> Engine:
    """Load a version and answer the engine that runs it. Blocks; call it before serving.

    Raises as `check`, and Unavailable LOAD_FAILED with what is wrong with the files.
    """
    check(spec)
    from llmos.servers.execution.engine.module.engine import load_module

    return load_module(spec)
