"""Steps on what models give: pooling, normalising, probabilities, labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.lib.encoder import normalise
from llmos.servers.execution.engine.base import TensorSpec
from llmos.servers.execution.engine.serving.steps.options import Options

Array = npt.NDArray[Any]


class Pool:
    """Turns token vectors [n, length, dim] into one vector each; `mask` says which count."""

    def __init__(self, options: Options) -> None:
        """Read `input`, `output`, `mask`, `how` (mean, cls, max)."""
        self._input = options.text("input", "last_hidden_state")
        self._output = options.text("output", "embedding")
        self._mask = options.text("mask", "attention_mask")
        self._how = options.choice("how", "mean", "cls", "max")
        self.takes = [
            TensorSpec(self._input, "float32", (-1, -1, -1)),
            TensorSpec(self._mask, "int64", (-1, -1)),
        ]
        self.gives = [TensorSpec(self._output, "float32", (-1, -1))]

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Pool."""
        hidden = tensors[self._input].astype(np.float32, copy=False)
        if self._how == "cls":
            return {self._output: hidden[:, 0]}
        weights = tensors[self._mask][..., None].astype(np.float32)
        if self._how == "max":
            return {self._output: np.where(weights > 0, hidden, -np.inf).max(axis=1)}
        total = np.maximum(weights.sum(axis=1), 1e-9)
        return {self._output: (hidden * weights).sum(axis=1) / total}


class _Map:
    """From one tensor to another one of the same shape."""

    def __init__(self, options: Options, output: str) -> None:
        self._input = options.text("input")
        self._output = options.text("output", output or self._input)
        self.takes = [TensorSpec(self._input, "float32", (-1, -1))]
        self.gives = [TensorSpec(self._output, "float32", (-1, -1))]


class Normalise(_Map):
    """Makes vectors [n, dim] of length 1."""

    def __init__(self, options: Options) -> None:
        """Read `input`, `output`."""
        super().__init__(options, "")

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Normalise."""
        return {self._output: normalise(tensors[self._input])}


class Softmax(_Map):
    """Makes probabilities of the last axis that sum to 1."""

    def __init__(self, options: Options) -> None:
        """Read `input`, `output`."""
        super().__init__(options, "scores")

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Compute, safe against overflow."""
        values = tensors[self._input].astype(np.float32, copy=False)
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return {self._output: powers / powers.sum(axis=-1, keepdims=True)}


class Sigmoid(_Map):
    """Makes a probability of every number."""

    def __init__(self, options: Options) -> None:
        """Read `input`, `output`."""
        super().__init__(options, "scores")

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Compute, safe against overflow."""
        values = tensors[self._input].astype(np.float32, copy=False)
        half = np.exp(-np.abs(values))
        return {self._output: np.where(values >= 0, 1 / (1 + half), half / (1 + half))}


class Labels:
    """Names the likeliest classes of scores [n, classes]: `label` and `score`, both [n, top]."""

    def __init__(self, options: Options) -> None:
        """Read `input`, `output`, `score`, `top`, `names` (a list, a file, or config.json's)."""
        self.input = options.text("input", "scores")
        self._output = options.text("output", "label")
        self._score = options.text("score", "score")
        self._top = options.whole("top", 1)
        if self._top < 1:
            raise options.bad("top must be 1 or more")
        self.names = options.lines("names") or names_of(options)
        self.takes = [TensorSpec(self.input, "float32", (-1, len(self.names) or -1))]
        self.gives = [
            TensorSpec(self._output, "object", (-1, -1)),
            TensorSpec(self._score, "float32", (-1, -1)),
        ]

    def name(self, index: int) -> str:
        """Return a class's name; its number when it has none."""
        return self.names[index] if index < len(self.names) else str(index)

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Name them, the likeliest first."""
        scores = tensors[self.input]
        best = np.argsort(-scores, axis=-1, kind="stable")[:, : self._top]
        labels = np.empty(best.shape, object)
        for place, index in np.ndenumerate(best):
            labels[place] = self.name(int(index))
        return {self._output: labels, self._score: np.take_along_axis(scores, best, -1)}


def names_of(options: Options) -> list[str]:
    """Return the labels of config.json (`id2label`); none when it has none."""
    if "config.json" not in options.files:
        return []
    try:
        table = json.loads(options.files["config.json"].read_text(encoding="utf-8"))
        found = table.get("id2label", {})
        return [str(found[str(index)]) for index in range(len(found))]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as exc:
        raise options.bad(f"config.json has no usable id2label: {exc}") from exc
