"""The kinds of jobs: what a good spec is, which versions and packages each one needs."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.servers.optimizer.seams import Source

_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(@[1-9][0-9]{0,17})?")
_EXPORT_PACKAGES = (
    *("numpy", "onnx", "onnxruntime", "onnxscript"),
    *("safetensors", "tokenizers", "torch", "transformers"),
)


def check_spec(spec: jobs_pb2.JobSpec) -> str:
    """Check what can be checked without looking anywhere; return the source's reference.

    Raises InvalidArgument BAD_SPEC naming the field.
    """
    kind = spec.WhichOneof("kind")
    if kind is None:
        raise _bad("The spec has no kind; set export_onnx.")
    export = spec.export_onnx
    if not _REF.fullmatch(export.model):
        raise _bad(
            f"export_onnx.model is {export.model[:60]!r}; it must be `name` or `name@version`."
        )
    for name in ("min_cosine", "min_cosine_int8"):
        value = getattr(export, name)
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise _bad(f"export_onnx.{name} is {value:g}; it must be 0 to 1.")
    return export.model


def check_packages() -> None:
    """Raise FailedPrecondition MISSING_EXTRA when a job's packages are not installed."""
    missing = [name for name in _EXPORT_PACKAGES if find_spec(name) is None]
    if missing:
        raise FailedPrecondition(
            "MISSING_EXTRA",
            f"Exporting needs {', '.join(missing)}, not installed: pip install 'llmos[optimizer]'.",
        )


def check_source(source: Source) -> None:
    """Raise FailedPrecondition WRONG_FORMAT when the job cannot start from this version."""
    if source.format != "safetensors" or source.task != "embed":
        raise FailedPrecondition(
            "WRONG_FORMAT",
            f"{source.ref} is a {source.format or 'unknown'} model for "
            f"{source.task or 'an unknown task'}; export_onnx works on safetensors text encoders "
            "(embed).",
        )


def _bad(message: str) -> InvalidArgument:
    return InvalidArgument("BAD_SPEC", message)
