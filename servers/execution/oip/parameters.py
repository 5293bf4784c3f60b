"""Parameters of inference requests: honours what is known, refuses what would be ignored."""

from __future__ import annotations

from typing import Any

from llmos.api.inference import open_inference_pb2 as pb
from llmos.lib.errors import InvalidArgument


def timeout_s(request: pb.ModelInferRequest) -> float | None:
    """Return the parameter `timeout` in seconds; check the others.

    Raises InvalidArgument BAD_PARAMETER naming the one that asks for what is not there.
    """
    timeout = None
    for name, parameter in request.parameters.items():
        value = _value(parameter)
        if name == "timeout":
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise _bad(f"Parameter 'timeout' is {value!r}; it is a number of microseconds.")
            timeout = value / 1e6 or None  # 0 = none, as in the protocol
        elif name != "priority" and not (name.startswith("sequence_") and not value):
            raise _bad(
                f"Parameter {name[:60]!r} is not known; timeout and priority are. Models keep no "
                "state between calls."
            )
    given = [(t.name, t.parameters) for t in request.inputs]
    given += [(t.name, t.parameters) for t in request.outputs]
    for tensor, names in given:
        for name in names:
            if name not in ("binary_data", "binary_data_size"):  # of the protocol's HTTP side
                raise _bad(
                    f"Tensor {tensor!r} has parameter {name[:60]!r}, which is not known; "
                    "tensors go in the message itself, whole."
                )
    return timeout


def _value(parameter: pb.InferParameter) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, choice) if choice else None


def _bad(message: str) -> InvalidArgument:
    return InvalidArgument("BAD_PARAMETER", message)
