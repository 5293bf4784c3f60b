"""What a loaded module takes and gives, whatever kind of file it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmos.servers.execution.engine.base import TensorSpec
from llmos.servers.execution.engine.serving.checks import Dimensions
from llmos.servers.execution.engine.serving.config import TensorConfig, bad

DTYPES = {
    "torch.bool": "bool",
    "torch.uint8": "uint8",
    "torch.int8": "int8",
    "torch.int16": "int16",
    "torch.int32": "int32",
    "torch.int64": "int64",
    "torch.float16": "float16",
    "torch.bfloat16": "bfloat16",
    "torch.float32": "float32",
    "torch.float64": "float64",
}


@dataclass(frozen=True)
class Signature:
    """A module and its tensors.

    order: names of all arguments. numbers: those that are no tensors. dimensions: of the inputs,
    see checks; fixed: of the outputs.
    """

    call: Callable[..., Any]
    order: Sequence[str]
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    numbers: Sequence[str] = ()
    dimensions: Dimensions = field(default_factory=dict)
    fixed: Mapping[str, Sequence[int | str | None]] = field(default_factory=dict)


def declared(tensors: Sequence[TensorConfig]) -> dict[str, TensorSpec]:
    """Return declared tensors by name. Raises Unavailable LOAD_FAILED for a wrong datatype."""
    found: dict[str, TensorSpec] = {}
    for tensor in tensors:
        if tensor.dtype not in DTYPES.values():
            known = ", ".join(DTYPES.values())
            raise bad(f"{tensor.name} has dtype {tensor.dtype!r}; it must be one of {known}")
        found[tensor.name] = TensorSpec(tensor.name, tensor.dtype, tensor.shape)
    return found
