"""The pipeline engine: a declared graph of models and steps. Light until `load`."""

from __future__ import annotations

from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.servers.execution.engine.base import Engine, ModelSpec
from llmos.servers.execution.engine.serving.declared import FILE

__all__ = ["check", "estimate_bytes", "load"]

_BYTES = 96 << 20  # the values of a few requests; its models are workers of their own


def check(spec: ModelSpec) -> None:
    """Say whether this engine can run a version; loads nothing.

    Raises FailedPrecondition NO_ENGINE; InvalidArgument BAD_OPTION.
    """
    if spec.format != "pipeline" or spec.task != "predict":
        raise FailedPrecondition(
            "NO_ENGINE", f"{spec.ref} is a {spec.format} model; the pipeline engine runs pipelines."
        )
    if spec.changes:
        raise InvalidArgument(
            "BAD_OPTION",
            f"{spec.ref} is a pipeline and has no {FILE}; give {min(spec.changes)[:60]!r} to a "
            "model that it calls.",
        )


def estimate_bytes(spec: ModelSpec) -> int:
    """Return about how much memory a worker with this version takes, bytes."""
    return _BYTES


def load(spec: ModelSpec) -> Engine:
    """Load a version and answer the engine that runs it.

    Raises as `check`, and Unavailable LOAD_FAILED with what is wrong with the file.
    """
    check(spec)
    from llmos.servers.execution.engine.pipeline.engine import PipelineEngine

    return PipelineEngine(spec)
