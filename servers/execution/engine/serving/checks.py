"""Whether a request fits a model: errors that name the tensor and what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.engine.base import TensorSpec

Tensors = Mapping[str, npt.NDArray[Any]]
# Dimensions of the inputs: a number, a name that must be the same size wherever it stands, or
# None (free). No entry: nothing is known, not even how many there are.
Dimensions = Mapping[str, Sequence[int | str | None]]


class Fit:
    """The tensors of one model."""

    def __init__(
        self,
        ref: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        dimensions: Dimensions,
    ) -> None:
        """Remember them; `dimensions` says more about the inputs than their shapes."""
        self._ref = ref
        self._inputs = {s.name: s for s in inputs}
        self._outputs = {s.name: s for s in outputs}
        self._dimensions = dimensions

    def check(self, inputs: Tensors, outputs: Sequence[str]) -> None:
        """Raise InvalidArgument BAD_TENSOR where a request does not fit the model."""
        specs = self._inputs
        for name in inputs:
            if name not in specs:
                raise refuse(f"{self._ref} takes no tensor {name!r}; it takes {names(specs)}.")
        sizes: dict[str, tuple[int, str]] = {}
        for name, spec in specs.items():
            if name not in inputs:
                raise refuse(f"Tensor {name!r} is missing; {self._ref} takes {names(specs)}.")
            array, expected = inputs[name], describe(spec)
            dtype = "float32" if spec.dtype == "bfloat16" else spec.dtype
            if dtype and array.dtype != np.dtype(dtype):
                raise refuse(f"Tensor {name!r} has datatype {array.dtype}; expected {expected}.")
            self._check_shape(name, array.shape, spec, sizes)
        for name in outputs:
            if name not in self._outputs:
                known = names(self._outputs)
                raise refuse(f"{self._ref} gives no tensor {name!r}; it gives {known}.")

    def _check_shape(
        self, name: str, shape: Sequence[int], spec: TensorSpec, sizes: dict[str, tuple[int, str]]
    ) -> None:
        known = self._dimensions.get(name)
        fits = known is None or len(shape) == len(spec.shape)
        if not fits or any(e not in (-1, n) for n, e in zip(shape, spec.shape, strict=False)):
            raise refuse(f"Tensor {name!r} has shape {list(shape)}; expected {describe(spec)}.")
        for size, symbol in zip(shape, known or (), strict=False):
            if not isinstance(symbol, str) or not symbol.isidentifier():
                continue
            first, owner = sizes.setdefault(symbol, (size, name))
            if first != size:
                raise refuse(
                    f"Tensor {name!r} has {size} as its dimension {symbol!r}; expected {first}, "
                    f"as in tensor {owner!r}."
                )


def describe(spec: TensorSpec) -> str:
    """Return a tensor's datatype and shape for people."""
    dtype = "strings" if spec.dtype == "object" else spec.dtype
    return f"{dtype} of shape {list(spec.shape)} (-1 = free)"


def names(specs: Mapping[str, TensorSpec]) -> str:
    """Return tensors with what they are, for people."""
    return ", ".join(f"{s.name!r} ({describe(s)})" for s in specs.values())


def refuse(message: str) -> InvalidArgument:
    """Return the error for a tensor that does not fit."""
    return InvalidArgument("BAD_TENSOR", message)
