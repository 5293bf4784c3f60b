"""Every kind by its name in JobSpec.kind: the one place where a kind is added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.servers.optimizer.kinds import (
    chains,
    compress,
    distil,
    evaluate,
    export_onnx,
    fine_tune,
    train,
)
from llmos.servers.optimizer.kinds.base import Kind, bad

_STEPS: Mapping[str, Kind] = {
    "export_onnx": export_onnx.KIND,
    "train": train.KIND,
    "fine_tune": fine_tune.KIND,
    "distil": distil.KIND,
    "prune": compress.PRUNE,
    "quantise": compress.QUANTISE,
    "export": compress.EXPORT,
    "evaluate": evaluate.KIND,
}
KINDS: Mapping[str, Kind] = {**_STEPS, **chains.chains(_STEPS)}


def find(spec: jobs_pb2.JobSpec) -> tuple[Kind, Any]:
    """Return a spec's kind and its message. Raises InvalidArgument BAD_SPEC."""
    name = spec.WhichOneof("kind")
    if name is None:
        raise bad(f"The spec has no kind; set one of {', '.join(KINDS)}.")
    if name not in KINDS:
        raise bad(f"This version cannot do {name}.")
    return KINDS[name], getattr(spec, name)
