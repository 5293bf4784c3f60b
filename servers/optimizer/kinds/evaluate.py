"""The kind evaluate as the server knows it."""

from __future__ import annotations

from llmos.api.optimizer.v1 import evaluate_pb2 as pb
from llmos.servers.optimizer.kinds.base import Kind, Needs, bad, check_ref
from llmos.servers.optimizer.kinds.compress import TORCH, check_data, check_gates

_MOST = 16
_LONGEST = 4096
PACKAGES = (*TORCH, "onnxruntime", "sklearn", "torchmetrics", "sacrebleu", "matplotlib")


def check_settings(field: str, spec: pb.Evaluate) -> list[str]:
    """Check all but the models; return the data sets. Raises BAD_SPEC."""
    if (spec.labels or spec.targets or spec.positive) and not spec.data.dataset:
        raise bad(f"{field}.labels, targets and positive need {field}.data.dataset; name one.")
    if spec.labels and spec.targets:
        raise bad(f"{field}.labels and {field}.targets exclude each other; set one.")
    if spec.max_tokens > _LONGEST:
        raise bad(f"{field}.max_tokens is {spec.max_tokens}; at most {_LONGEST}.")
    if spec.beams > _MOST:
        raise bad(f"{field}.beams is {spec.beams}; at most {_MOST}.")
    check_gates(f"{field}.gates", spec.gates)
    return check_data(f"{field}.data", spec.data)


def _check(spec: pb.Evaluate) -> Needs:
    if not 1 <= len(spec.models) <= _MOST:
        raise bad(f"evaluate.models has {len(spec.models)} models; name 1 to {_MOST}.")
    for index, model in enumerate(spec.models):
        check_ref(f"evaluate.models[{index}]", model)
    return Needs(list(spec.models), check_settings("evaluate", spec))


def _imports(spec: pb.Evaluate) -> list[str]:
    return ["torch", "matplotlib.figure", "onnxruntime"]


KIND = Kind(
    _check, "llmos.servers.optimizer.job.evaluate.evaluate:Evaluate", PACKAGES, imports=_imports
)
