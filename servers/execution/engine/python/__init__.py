"""The python engine: a class that a version brings, in a process and an environment of its own.

Light until `load`. See docs/models.md for what a user writes, host.py for the other side.
"""

from __future__ import annotations

from llmos.lib.errors import FailedPrecondition
from llmos.servers.execution.engine.base import Engine, ModelSpec

__all__ = ["check", "estimate_bytes", "load"]

_WORKER = 64 << 20  # what the worker itself takes: requests and answers on their way


def check(spec: ModelSpec) -> None:
    """Say whether this engine can run a version; loads nothing.

    Raises FailedPrecondition NO_ENGINE, NO_ENVIRONMENT; Unavailable LOAD_FAILED.
    """
    if spec.format != "python" or spec.task != "predict":
        raise FailedPrecondition(
            "NO_ENGINE", f"{spec.ref} is a {spec.format} model; the python engine runs classes."
        )
    from llmos.servers.execution.engine.python.declaration import interpreter, read

    interpreter(spec, read(spec))


def estimate_bytes(spec: ModelSpec) -> int:
    """Return what a version may take at most, bytes: its own limit and that of its worker."""
    from llmos.servers.execution.engine.python.declaration import read

    return _WORKER + (read(spec).memory_mb << 20)


def load(spec: ModelSpec) -> Engine:
    """Load a version and answer the engine that runs it. Blocks; call it before serving.

    Raises as `check`, and Unavailable LOAD_FAILED with what the model's own code said.
    """
    check(spec)
    from llmos.servers.execution.engine.python.engine import load_class

    return load_class(spec)
