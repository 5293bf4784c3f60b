"""The step from what a detector gives to boxes: the best, without those that overlap them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.servers.execution.engine.base import TensorSpec
from llmos.servers.execution.engine.serving.steps.options import Options
from llmos.servers.execution.engine.serving.steps.vectors import names_of

Array = npt.NDArray[Any]


class Boxes:
    """Turns boxes [n, k, 4] and scores [n, k, classes] into the boxes that are objects.

    Gives `boxes` FP32 [m, 4] (left, top, right, bottom), `score` [m], `label` BYTES [m] and
    `image` INT64 [m], the row each is of; the likeliest of each image first. With `joined` the
    model gives both in one tensor [n, 4 + classes, k] (or [n, k, 4 + classes]).
    """

    def __init__(self, options: Options) -> None:
        """Read how: see docs/models.md."""
        self._joined = options.text("joined", "")
        self._boxes = options.text("boxes", "boxes")
        self._scores = options.text("scores", "scores")
        self._centres = options.choice("form", "corners", "centres") == "centres"
        self._threshold = options.number("threshold", 0.25)
        self._overlap = options.number("overlap", 0.45)
        self._most = options.whole("most", 300)
        self.names = options.lines("names") or names_of(options)
        self.takes = [TensorSpec(self._joined, "float32", (-1, -1, -1))]
        if not self._joined:
            self.takes = [
                TensorSpec(self._boxes, "float32", (-1, -1, 4)),
                TensorSpec(self._scores, "float32", (-1, -1, -1)),
            ]
        self.gives = [
            TensorSpec("boxes", "float32", (-1, 4)),
            TensorSpec("score", "float32", (-1,)),
            TensorSpec("label", "object", (-1,)),
            TensorSpec("image", "int64", (-1,)),
        ]

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Choose."""
        if self._joined:
            both = tensors[self._joined]
            if both.shape[1] < both.shape[2]:
                both = both.transpose(0, 2, 1)
            boxes, scores = both[..., :4], both[..., 4:]
        else:
            boxes, scores = tensors[self._boxes], tensors[self._scores]
        found: list[tuple[int, Array, float, int]] = []
        for row in range(len(boxes)):
            found += self._choose(row, boxes[row], scores[row])
        labels = np.empty(len(found), object)
        labels[:] = [self.names[c] if c < len(self.names) else str(c) for _, _, _, c in found]
        return {
            "boxes": np.array([b for _, b, _, _ in found], np.float32).reshape(-1, 4),
            "score": np.array([s for _, _, s, _ in found], np.float32),
            "label": labels,
            "image": np.array([i for i, _, _, _ in found], np.int64),
        }

    def _choose(self, row: int, boxes: Array, scores: Array) -> list[tuple[int, Array, float, int]]:
        classes, best = scores.argmax(axis=-1), scores.max(axis=-1)
        likely = np.flatnonzero(best >= self._threshold)
        likely = likely[np.argsort(-best[likely], kind="stable")]
        corners = boxes[likely].astype(np.float32)
        if self._centres:
            half = corners[:, 2:] / 2
            corners = np.concatenate([corners[:, :2] - half, corners[:, :2] + half], axis=1)
        kept = suppress(corners, classes[likely], self._overlap, self._most)
        return [(row, corners[i], float(best[likely[i]]), int(classes[likely[i]])) for i in kept]


def suppress(corners: Array, classes: Array, overlap: float, most: int) -> list[int]:
    """Return the indices of boxes [k, 4], best first, that no better one of their class covers.

    Non-maximum suppression, with intersection over union as the measure of covering.
    """
    areas = np.prod(np.maximum(corners[:, 2:] - corners[:, :2], 0), axis=1)
    alive = np.ones(len(corners), bool)
    kept: list[int] = []
    for index in range(len(corners)):
        if not alive[index]:
            continue
        kept.append(index)
        if len(kept) == most:
            break
        low = np.maximum(corners[index, :2], corners[:, :2])
        high = np.minimum(corners[index, 2:], corners[:, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        ratio = shared / np.maximum(areas[index] + areas - shared, 1e-9)
        alive &= (ratio <= overlap) | (classes != classes[index])
    return kept
