"""torch.export: the file says what the module takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llmos.servers.execution.engine.base import TensorSpec
from llmos.servers.execution.engine.module.signature import DTYPES, Signature
from llmos.servers.execution.engine.serving.config import Serving, bad


def read(path: Path, device: str, serving: Serving) -> Signature:
    """Load a file. Raises Unavailable LOAD_FAILED, and what torch raises for bad files."""
    with path.open("rb") as file:  # not by its name: storage's names have no `.pt2`
        program = torch.export.load(file)
    wanted = program.graph_signature
    values: dict[str, Any] = {}
    outputs: list[Any] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node.name] = node.meta.get("val")
        elif node.op == "output":
            outputs = list(node.args[0])
    given = {getattr(node, "name", ""): node for node in outputs}
    names = [n for n in wanted.user_outputs if isinstance(n, str)]
    module: Any = program.module()
    if device != "cpu":
        module = module.to(device)
    tensors = [(name, values[name]) for name in wanted.user_inputs if isinstance(name, str)]
    for name, value in tensors:
        if not isinstance(value, torch.Tensor):
            raise bad(f"the module takes {name!r}, which is no tensor; export it with tensors only")
    called = [t.name for t in serving.outputs] or names
    if len(called) != len(names):
        raise bad(f"outputs has {len(called)} tensors; the module gives {len(names)}")
    found = {mine: given[theirs].meta["val"] for mine, theirs in zip(called, names, strict=True)}
    return Signature(
        call=module,
        order=[name for name, _ in tensors],
        inputs=[_spec(name, value) for name, value in tensors],
        outputs=[_spec(name, value) for name, value in found.items()],
        dimensions={name: _dimensions(value) for name, value in tensors},
        fixed={name: _dimensions(value) for name, value in found.items()},
    )


def _spec(name: str, value: Any) -> TensorSpec:
    shape = [d if isinstance(d, int) else -1 for d in value.shape]
    return TensorSpec(name, DTYPES.get(str(value.dtype), "float32"), shape)


def _dimensions(value: Any) -> Sequence[int | str | None]:
    return [d if isinstance(d, int) else str(d) for d in value.shape]
