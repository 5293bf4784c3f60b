"""Zeros in place of small weights; shapes stay."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import prune


def layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the linear and convolution layers; what a tied embedding shares stays whole."""
    embedded = {
        part.weight.data_ptr() for part in module.modules() if isinstance(part, nn.Embedding)
    }
    return [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d)
        and part.weight.data_ptr() not in embedded
    ]


def magnitude(module: nn.Module, amount: float) -> None:
    """Zero the smallest weights of all layers together (Han et al. 2015)."""
    found = [(part, "weight") for _, part in layers(module)]
    prune.global_unstructured(found, pruning_method=prune.L1Unstructured, amount=amount)
    for part, name in found:
        prune.remove(part, name)  # type: ignore[no-untyped-call]


def two_of_four(module: nn.Module) -> None:
    """Zero the two smallest of each four neighbours in a row (Mishra et al. 2021).

    A layer whose inputs do not divide by four stays as it is.
    """
    with torch.no_grad():
        for _, part in layers(module):
            weight: torch.Tensor = part.weight  # type: ignore[assignment]
            rows = weight.flatten(1)
            if rows.shape[1] % 4:
                continue
            groups = rows.reshape(-1, 4)
            small = groups.abs().topk(2, dim=1, largest=False).indices
            weight.copy_(groups.scatter(1, small, 0.0).reshape(weight.shape))
