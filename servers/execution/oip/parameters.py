"""Parameters of inference requests: honours what is known, refuses what would be ignored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmos.api.inference import open_inference_pb2 as pb
from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.engine.base import SequenceCall

GENERATION = ("max_tokens", "temperature", "top_p", "top_k", "seed")
_HTTP = ("binary_data", "binary_data_size")  # of the protocol's HTTP side; without effect here
_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


@dataclass(frozen=True)
class Asked:
    """What a request's parameters ask for. timeout_s: None = no limit of its own."""

    timeout_s: float | None
    sequence: SequenceCall | None
    empty_final: bool
    generation: Mapping[str, int | float]


@dataclass(frozen=True)
class Place:
    """Where a tensor's elements are, or go to: a part of a region."""

    region: str
    size: int
    offset: int


def read(request: pb.ModelInferRequest) -> Asked:
    """Return what the request asks for.

    Raises InvalidArgument BAD_PARAMETER naming the parameter that is not known or is wrong.
    """
    values = {name: _value(parameter) for name, parameter in request.parameters.items()}
    generation = {}
    for name, value in values.items():
        if name in GENERATION:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise bad(f"Parameter {name!r} is {value!r}; it is a number.")
            generation[name] = value
        elif name == "timeout":
            if not _whole(value):
                raise bad(f"Parameter 'timeout' is {value!r}; it is a number of microseconds.")
        elif name in ("sequence_start", "sequence_end", "triton_enable_empty_final_response"):
            if not isinstance(value, bool):
                raise bad(f"Parameter {name!r} is {value!r}; it is true or false.")
        elif name not in ("priority", "sequence_id"):
            raise bad(
                f"Parameter {name[:60]!r} is not known; timeout, priority, sequence_id, "
                f"sequence_start, sequence_end, {', '.join(GENERATION)} are."
            )
    return Asked(
        timeout_s=values.get("timeout", 0) / 1e6 or None,  # 0 = none, as in the protocol
        sequence=_sequence(values),
        empty_final=values.get("triton_enable_empty_final_response", False),
        generation=generation,
    )


def place(tensor: str, given: Mapping[str, pb.InferParameter]) -> Place | None:
    """Return where a tensor's elements are; None = in the message. Raises BAD_PARAMETER."""
    values = {name: _value(given[name]) for name in _MEMORY if name in given}
    if not values:
        return None
    region = values.get("shared_memory_region", "")
    size, offset = values.get("shared_memory_byte_size", 0), values.get("shared_memory_offset", 0)
    if not isinstance(region, str) or not region or not _whole(size) or not _whole(offset):
        raise bad(
            f"Tensor {tensor!r} needs shared_memory_region (a name), shared_memory_byte_size and "
            "shared_memory_offset (numbers of bytes)."
        )
    return Place(region, size, offset)


def classification(tensor: str, given: Mapping[str, pb.InferParameter]) -> int:
    """Return how many labels of an output are wanted; 0 = none. Raises BAD_PARAMETER."""
    if "classification" not in given:
        return 0
    value = _value(given["classification"])
    if not _whole(value) or value < 1:
        raise bad(f"Tensor {tensor!r}: parameter 'classification' is {value!r}; give 1 or more.")
    return int(value)


def check_tensors(request: pb.ModelInferRequest) -> None:
    """Raise InvalidArgument BAD_PARAMETER for a tensor's parameter that is not known."""
    known: list[tuple[str, Any, tuple[str, ...]]] = [
        (t.name, t.parameters, (*_HTTP, *_MEMORY)) for t in request.inputs
    ]
    known += [(t.name, t.parameters, (*_HTTP, *_MEMORY, "classification")) for t in request.outputs]
    for tensor, names, allowed in known:
        for name in names:
            if name not in allowed:
                raise bad(f"Tensor {tensor!r} has parameter {name[:60]!r}, which is not known.")


def bad(message: str) -> InvalidArgument:
    """Return the error for a parameter."""
    return InvalidArgument("BAD_PARAMETER", message)


def _sequence(values: Mapping[str, Any]) -> SequenceCall | None:
    id = values.get("sequence_id", 0)
    start, end = values.get("sequence_start", False), values.get("sequence_end", False)
    if isinstance(id, str) and id:
        id = int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little") or 1
    if isinstance(id, bool) or not (id == "" or _whole(id)):
        raise bad(f"Parameter 'sequence_id' is {id!r}; it is a number or a text.")
    if not id:
        if start or end:
            raise bad("sequence_start and sequence_end need a sequence_id that is not 0.")
        return None
    return SequenceCall(id, start, end)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _value(parameter: pb.InferParameter) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, choice) if choice else None
