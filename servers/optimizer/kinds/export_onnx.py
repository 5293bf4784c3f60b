"""The kind export_onnx as the server knows it."""

from __future__ import annotations

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.lib.errors import FailedPrecondition
from llmos.servers.optimizer.kinds import compress
from llmos.servers.optimizer.kinds.base import Kind, Needs, check_range, check_ref
from llmos.servers.optimizer.seams import Source


def _check(spec: jobs_pb2.ExportOnnx) -> Needs:
    check_ref("export_onnx.model", spec.model)
    for name in ("min_cosine", "min_cosine_int8"):
        check_range(f"export_onnx.{name}", getattr(spec, name), 0, 1)
    return Needs(models=[spec.model])


def _check_source(spec: jobs_pb2.ExportOnnx, source: Source) -> None:
    if source.format != "safetensors" or source.task != "embed":
        raise FailedPrecondition(
            "WRONG_FORMAT",
            f"{source.ref} is a {source.format or 'unknown'} model for "
            f"{source.task or 'an unknown task'}; export_onnx works on safetensors text encoders "
            "(embed).",
        )


KIND = Kind(
    check=_check,
    check_source=_check_source,
    runner="llmos.servers.optimizer.job.export_onnx:ExportOnnx",
    imports=lambda spec: ["llmos.servers.optimizer.job.original", *compress.TORCH_MODULES],
    packages=(
        *("numpy", "onnx", "onnxruntime", "onnxscript"),
        *("safetensors", "tokenizers", "torch", "transformers"),
    ),
)
