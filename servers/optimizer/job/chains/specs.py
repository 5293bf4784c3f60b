"""Puts a source into the spec of a step. Imports nothing heavy: the server checks with it, too."""

from __future__ import annotations

from llmos.api.optimizer.v1 import jobs_pb2 as pb

FIELDS = {"distil": "teacher", "evaluate": "", "train": "", "pipeline": "model", "search": "model"}


def with_source(spec: pb.JobSpec, model: str, original: str) -> pb.JobSpec:
    """Return a copy that starts from `model`; an evaluation compares it with `original`."""
    step = pb.JobSpec()
    step.CopyFrom(spec)
    kind = step.WhichOneof("kind") or ""
    message = getattr(step, kind)
    if kind == "evaluate":
        if not message.models:
            message.models.extend(dict.fromkeys([original, model]))
    elif field := FIELDS.get(kind, "model"):
        if model:
            setattr(message, field, model)
    return step
