"""TorchScript: `forward` tells what a module takes, the version tells datatypes and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmos.servers.execution.engine.base import TensorSpec
from llmos.servers.execution.engine.module.signature import Signature, declared
from llmos.servers.execution.engine.serving.config import Serving, bad

_NUMBERS = ("int", "float", "bool")


def read(path: Path, device: str, serving: Serving) -> Signature:
    """Load a file. Raises Unavailable LOAD_FAILED, and what torch raises for bad files."""
    module: Any = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    module.eval()
    arguments = [a for a in module.forward.schema.arguments if a.name != "self"]
    known = declared(serving.inputs)
    order, numbers, inputs = [], [], []
    for argument in arguments:
        kind = str(argument.type)
        if kind in _NUMBERS:
            if argument.has_default_value() and argument.name not in serving.constants:
                break  # it and what follows have values of their own
            numbers.append(argument.name)
        elif kind == "Tensor":
            # Without a declaration: a guess for the metadata, and anything is let through.
            inputs.append(known.get(argument.name, TensorSpec(argument.name, "", ())))
        elif argument.has_default_value():
            break
        else:
            raise bad(f"forward takes {argument.name!r} of type {kind}; only tensors can be given")
        order.append(argument.name)
    for name in known:
        if name not in order:
            raise bad(f"inputs has {name!r}; forward takes {', '.join(order)}")
    return Signature(
        call=module,
        order=order,
        inputs=inputs,
        outputs=list(declared(serving.outputs).values()) or _outputs(module),
        numbers=numbers,
        dimensions={name: [d if d != -1 else None for d in known[name].shape] for name in known},
    )


def _outputs(module: Any) -> list[TensorSpec]:
    (returned,) = module.forward.schema.returns
    kind = returned.type.kind()
    if kind == "TupleType":
        count = len(returned.type.elements())
        return [TensorSpec(f"output_{i}", "", ()) for i in range(count)]
    if kind == "TensorType":
        return [TensorSpec("output", "", ())]
    raise bad(f"forward gives {returned.type}; declare its tensors under [[outputs]]")
