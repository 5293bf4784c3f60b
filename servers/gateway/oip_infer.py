"""Bodies of /v2/.../infer as messages of the protocol's gRPC side, and back.

The binary tensor extension: a header in JSON of `Inference-Header-Content-Length` bytes, then the
raw tensors of those inputs that have `binary_data_size`, in their order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from llmos.api.inference import open_inference_pb2 as pb
from llmos.servers.gateway import oip_tensors as tensors
from llmos.servers.gateway.schema import validated

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Values = dict[str, bool | int | float | str]
_BINARY = ("binary_data", "binary_data_size", "binary_data_output")


class Input(BaseModel):
    """A tensor that goes in."""

    model_config = _STRICT

    name: str
    datatype: str
    shape: list[Annotated[int, Field(ge=0, lt=2**63)]]
    parameters: Values = {}
    data: list[Any] | None = None


class Output(BaseModel):
    """A tensor that is wanted."""

    model_config = _STRICT

    name: str
    parameters: Values = {}


class InferBody(BaseModel):
    """The JSON of a request."""

    model_config = _STRICT

    id: str = ""
    parameters: Values = {}
    inputs: list[Input]
    outputs: list[Output] = []


def parse(raw: bytes, header: str | None) -> tuple[InferBody, bytes]:
    """Return the JSON part of a body, and the rest. Raises InvalidArgument."""
    if header is None:
        return validated(InferBody, raw), b""
    length = int(header[:18]) if header.isascii() and header.isdigit() else -1
    if not 0 <= length <= len(raw):
        raise tensors.bad(f"Inference-Header-Content-Length is {header[:20]!r}, not a length here.")
    return validated(InferBody, raw[:length]), raw[length:]


def to_message(name: str, version: str, body: InferBody, binary: bytes) -> pb.ModelInferRequest:
    """Return the request's message. Raises InvalidArgument BAD_TENSOR."""
    message = pb.ModelInferRequest(model_name=name, model_version=version, id=body.id)
    _parameters(message.parameters, body.parameters)
    at = 0
    for tensor in body.inputs:
        given = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _parameters(given.parameters, tensor.parameters)
        size = tensor.parameters.get("binary_data_size")
        if "shared_memory_region" in tensor.parameters:
            continue  # its elements are there
        if size is not None:
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise tensors.bad(f"Tensor {tensor.name!r} has no sane binary_data_size.")
            if at + size > len(binary):
                raise tensors.bad(
                    f"Tensor {tensor.name!r} is to have {size} bytes after the header and there "
                    f"are {len(binary) - at}."
                )
            message.raw_input_contents.append(binary[at : at + size])
            at += size
        elif tensor.data is None:
            raise tensors.bad(f"Tensor {tensor.name!r} has neither data nor binary_data_size.")
        else:
            raw = tensors.pack(tensor.name, tensor.datatype, tensor.data)
            message.raw_input_contents.append(raw)
    if at < len(binary):
        raise tensors.bad(f"{len(binary) - at} bytes after the header belong to no tensor.")
    for output in body.outputs:
        _parameters(message.outputs.add(name=output.name).parameters, output.parameters)
    return message


def _parameters(into: Any, values: Mapping[str, bool | int | float | str]) -> None:
    for name, value in values.items():
        if name in _BINARY:
            continue
        if isinstance(value, bool):
            into[name].bool_param = value
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise tensors.bad(f"Parameter {name[:60]!r} does not fit 64 bits.")
            into[name].int64_param = value
        elif isinstance(value, float):
            into[name].double_param = value
        else:
            into[name].string_param = value


def to_body(answer: pb.ModelInferResponse, asked: InferBody) -> tuple[bytes, int | None]:
    """Return an answer's body, and the length of its JSON when raw tensors follow it."""
    by_default = asked.parameters.get("binary_data_output", False)
    wanted = {o.name: o.parameters.get("binary_data", by_default) for o in asked.outputs}
    head: dict[str, Any] = {
        "model_name": answer.model_name,
        "model_version": answer.model_version,
        **({"id": answer.id} if answer.id else {}),
        "outputs": [],
    }
    binary: list[bytes] = []
    contents = iter(answer.raw_output_contents)
    for output in answer.outputs:
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        values = {name: _value(value) for name, value in output.parameters.items()}
        if "shared_memory_region" not in values:
            raw = next(contents)
            if wanted.get(output.name, by_default):
                values["binary_data_size"] = len(raw)
                binary.append(raw)
            else:
                entry["data"] = tensors.unpack(output.name, output.datatype, raw)
        if values:
            entry["parameters"] = values
        head["outputs"].append(entry)
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return b"".join([text, *binary]), len(text) if binary else None


def _value(parameter: pb.InferParameter) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, choice) if choice else None
