"""The kinds prune, quantise and export as the server knows them."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.api.optimizer.v1 import measure_pb2
from llmos.lib.errors import FailedPrecondition
from llmos.servers.optimizer.kinds.base import (
    Kind,
    Needs,
    bad,
    check_name,
    check_range,
    check_ref,
)
from llmos.servers.optimizer.seams import Source

MAX_ROWS = 100_000
_JOB = "llmos.servers.optimizer.job"
TORCH_MODULES = (
    f"{_JOB}.models.torch_folder",
    "torch._dynamo",
    "transformers.modeling_layers",
    "transformers.generation",
)
TORCH = ("numpy", "pyarrow", "safetensors", "tokenizers", "torch", "transformers")
_ONNX = (*TORCH, "onnx", "onnxruntime", "onnxscript")
_EXPORT_MODULES = ("torch.export._trace", "torch._inductor.ir")
_TAKES = {
    pb.QUANTISE_METHOD_ONNX_DYNAMIC_INT8: ("onnx",),
    pb.QUANTISE_METHOD_ONNX_STATIC_INT8: ("onnx",),
    pb.QUANTISE_METHOD_ONNX_INT4: ("onnx",),
    pb.QUANTISE_METHOD_TORCHAO_INT8: ("safetensors",),
    pb.QUANTISE_METHOD_TORCHAO_INT4: ("safetensors",),
}
_GGUF = ("gguf", "safetensors")


def check_data(field: str, data: pb.Data) -> list[str]:
    """Return the data sets that a Data names. Raises BAD_SPEC."""
    if data.rows > MAX_ROWS:
        raise bad(f"{field}.rows is {data.rows}; at most {MAX_ROWS} can be measured on.")
    if not data.dataset:
        for name in ("split", "input"):
            if getattr(data, name):
                raise bad(f"{field}.{name} is set but {field}.dataset is empty; name a data set.")
        return []
    check_ref(f"{field}.dataset", data.dataset)
    return [data.dataset]


def check_gates(field: str, gates: Sequence[measure_pb2.Gate]) -> None:
    """Raise BAD_SPEC unless each gate names a measure and a finite limit."""
    for gate in gates:
        if not gate.measure:
            raise bad(f"{field} has a gate without `measure`; name one, e.g. accuracy.")
        limits = [n for n in ("least", "most", "most_loss") if gate.HasField(n)]
        if not limits:
            raise bad(
                f"{field}: the gate on {gate.measure} asks nothing; set least, most or most_loss."
            )
        for name in limits:
            check_range(f"{field}: {name} of {gate.measure}", getattr(gate, name), -1e18, 1e18)


def _check_prune(spec: pb.Prune) -> Needs:
    check_ref("prune.model", spec.model)
    check_name("prune.name", spec.name)
    check_range("prune.amount", spec.amount, 0, 0.99)
    check_range("prune.heads", spec.heads, 0, 0.95)
    check_range("prune.channels", spec.channels, 0, 0.95)
    check_range("prune.learning_rate", spec.learning_rate, 0, 1)
    if spec.recovery_steps > 1_000_000:
        raise bad(f"prune.recovery_steps is {spec.recovery_steps}; at most 1,000,000.")
    structured = spec.method == pb.PRUNE_METHOD_STRUCTURED
    if (spec.heads or spec.channels) and not structured:
        raise bad("prune.heads and prune.channels belong to the method STRUCTURED; set it.")
    if spec.amount and spec.method not in (0, pb.PRUNE_METHOD_MAGNITUDE):
        raise bad("prune.amount belongs to the method MAGNITUDE; leave it out.")
    check_gates("prune.gates", spec.gates)
    return Needs([spec.model], check_data("prune.data", spec.data))


def _check_quantise(spec: pb.Quantise) -> Needs:
    check_ref("quantise.model", spec.model)
    check_name("quantise.name", spec.name)
    check_range("quantise.exclude_up_to", spec.exclude_up_to, 0, 1)
    check_gates("quantise.gates", spec.gates)
    return Needs([spec.model], check_data("quantise.data", spec.data))


def _check_export(spec: pb.Export) -> Needs:
    check_ref("export.model", spec.model)
    check_name("export.name", spec.name)
    check_gates("export.gates", spec.gates)
    return Needs([spec.model], check_data("export.data", spec.data))


def _prune_source(spec: pb.Prune, source: Source) -> None:
    _need("prune", source, ("safetensors",))


def _quantise_source(spec: pb.Quantise, source: Source) -> None:
    method = spec.method or pb.QUANTISE_METHOD_ONNX_DYNAMIC_INT8
    name = pb.QuantiseMethod.Name(method).removeprefix("QUANTISE_METHOD_")
    _need(f"quantise with {name}", source, _TAKES.get(method, _GGUF))


def _export_source(spec: pb.Export, source: Source) -> None:
    from_gguf = spec.format == pb.EXPORT_FORMAT_SAFETENSORS
    _need("this export", source, ("gguf",) if from_gguf else ("safetensors",))


def _quantise_imports(spec: pb.Quantise) -> Sequence[str]:
    takes = _TAKES.get(spec.method or pb.QUANTISE_METHOD_ONNX_DYNAMIC_INT8, _GGUF)
    if takes == ("onnx",):
        return (f"{_JOB}.compress.onnx_ways",)
    if takes == ("safetensors",):
        ways = (f"{_JOB}.compress.torchao_ways", "torchao.quantization")
        return (*TORCH_MODULES, *_EXPORT_MODULES, *ways)
    return (f"{_JOB}.compress.gguf_ways", "torch")


def _need(what: str, source: Source, formats: Sequence[str]) -> None:
    if source.format not in formats:
        cure = "; export it first" if "onnx" in formats or source.format == "gguf" else ""
        raise FailedPrecondition(
            "WRONG_FORMAT",
            f"{source.ref} is a {source.format or 'unknown'} model; {what} takes "
            f"{' or '.join(formats)}{cure}.",
        )


PRUNE = Kind(
    _check_prune,
    "llmos.servers.optimizer.job.compress.prune:Prune",
    TORCH,
    _prune_source,
    lambda spec: (
        *TORCH_MODULES,
        *(f"{_JOB}.compress.{name}" for name in ("recovery", "sparsity", "structure")),
    ),
)
QUANTISE = Kind(
    _check_quantise,
    "llmos.servers.optimizer.job.compress.quantise:Quantise",
    (*_ONNX, "torchao", "gguf"),
    _quantise_source,
    _quantise_imports,
)
EXPORT = Kind(
    _check_export,
    "llmos.servers.optimizer.job.compress.export:Export",
    _ONNX,
    _export_source,
    lambda spec: (*TORCH_MODULES, *_EXPORT_MODULES, f"{_JOB}.compress.exporters"),
)
