"""Writes a torch module as ONNX, torch.export or TorchScript, with a free batch (and length)."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import torch

from llmos.servers.optimizer.job.models.subject import Batch
from llmos.servers.optimizer.job.models.torch_folder import Module

OUTPUTS = {"embed": "last_hidden_state", "classify": "logits", "generate": "logits"}


def arguments(module: Module, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Return two rows as the module takes them, with a padded one among the texts."""
    found = []
    for name in module.names:
        tensor = torch.from_numpy(batch.feeds[name][:1])
        if tensor.dtype == torch.int64 and tensor.dim() == 2:
            tensor = tensor[:, :8] if tensor.shape[1] >= 8 else tensor
        found.append(torch.cat([tensor, tensor]).contiguous())
    if "attention_mask" in module.names and found[0].shape[1] > 2:
        # so that no exporter takes the mask for all ones
        found[module.names.index("attention_mask")][1, -2:] = 0
    return tuple(found)


def _shapes(module: torch.nn.Module, names: Module) -> tuple[Any, ...]:
    """Return which dimensions of its arguments are free, as the exporters want it."""
    takes = inspect.signature(module.forward).parameters.values()
    free = _free(names)
    # All that `*tensors` takes is one argument to them.
    return (free,) if any(one.kind is one.VAR_POSITIONAL for one in takes) else free


def _free(module: Module) -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("batch", min=1)
    if "input_ids" not in module.names:
        return tuple({0: batch} for _ in module.names)
    longest = getattr(getattr(module.model, "config", None), "max_position_embeddings", None)
    length = torch.export.Dim("sequence", min=2, max=longest)
    return tuple({0: batch, 1: length} for _ in module.names)


def onnx(module: Module, batch: Batch, path: Path) -> None:
    """Write ONNX by the dynamo exporter, and check the file."""
    import onnx as checker

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            module,
            arguments(module, batch),
            dynamo=True,
            dynamic_shapes=_shapes(module, module),
            input_names=module.names,
            output_names=[OUTPUTS.get(module.task, "y")],
            verbose=False,
        )
    assert program is not None  # with dynamo=True
    temporary = path.with_suffix(".tmp")
    program.save(str(temporary), external_data=False)
    checker.checker.check_model(str(temporary), full_check=True)
    temporary.replace(path)


def exported(module: torch.nn.Module, names: Module, batch: Batch, path: Path) -> None:
    """Write torch.export; `names` tells the inputs of `module`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            module, arguments(names, batch), dynamic_shapes=_shapes(module, names), strict=False
        )
        _rename(program)
        temporary = path.with_name("tmp-" + path.name)
        torch.export.save(program, temporary)
    temporary.replace(path)


def _rename(program: torch.export.ExportedProgram) -> None:
    """Call `&` and `|` by names without underscores: storage refuses such names in a graph."""
    aten: Any = torch.ops.aten
    other = {
        aten.__and__.Tensor: aten.bitwise_and.Tensor,
        aten.__or__.Tensor: aten.bitwise_or.Tensor,
    }
    for node in program.graph.nodes:
        node.target = other.get(node.target, node.target)


def scripted(module: Module, batch: Batch, path: Path) -> None:
    """Write TorchScript by tracing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.inference_mode():
            trace: Any = torch.jit.trace  # untyped
            traced = trace(module, arguments(module, batch), check_trace=False)
            traced = torch.jit.freeze(traced.eval())
        temporary = path.with_suffix(".tmp")
        torch.jit.save(traced, str(temporary))
    temporary.replace(path)
