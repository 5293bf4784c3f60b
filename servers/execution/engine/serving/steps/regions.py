"""Steps for text in images: where it is, cut out upright, and turned the right way up.

`regions` follows the post-processing of differentiable binarization (Liao et al. 2020,
"Real-time Scene Text Detection with Differentiable Binarization").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from llmos.servers.execution.engine.base import TensorSpec
from llmos.servers.execution.engine.serving.steps.image import scaled
from llmos.servers.execution.engine.serving.steps.options import Options

Array = npt.NDArray[Any]


class Regions:
    """Turns a map [1, 1, h, w] of how likely a pixel is text into boxes [m, 4, 2] of corners.

    The corners are in the coordinates of `pixels`, in reading order of the boxes.
    """

    def __init__(self, options: Options) -> None:
        """Read `input`, `pixels`, `output`, thresholds, and by how much boxes grow."""
        self._input = options.text("input")
        self._pixels = options.text("pixels", "pixels")
        self._output = options.text("output", "boxes")
        self._pixel = options.number("pixel", 0.3)
        self._threshold = options.number("threshold", 0.5)
        self._grow = options.number("grow", 1.6)
        self._most = options.whole("most", 1000)
        self._least = options.number("least", 3.0)
        self.takes = [
            TensorSpec(self._input, "float32", (1, 1, -1, -1)),
            TensorSpec(self._pixels, "uint8", (1, -1, -1, 3)),
        ]
        self.gives = [TensorSpec(self._output, "float32", (-1, 4, 2))]

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Find."""
        likely = tensors[self._input][0, 0]
        mask = cv2.dilate((likely > self._pixel).astype(np.uint8), np.ones((2, 2), np.uint8))
        outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        height, width = tensors[self._pixels].shape[1:3]
        scale = np.array([width / likely.shape[1], height / likely.shape[0]], np.float32)
        found = []
        for outline in outlines[: self._most]:
            rectangle = cv2.minAreaRect(outline)
            if min(rectangle[1]) < self._least or _mean(likely, outline) < self._threshold:
                continue
            # A rectangle grown by d on all sides, with d = area * grow / perimeter.
            (wide, high) = rectangle[1]
            more = wide * high * self._grow / (wide + high)
            grown = (rectangle[0], (wide + more, high + more), rectangle[2])
            if min(grown[1]) < self._least + 2:
                continue
            corners = _ordered(cv2.boxPoints(grown)) * scale
            found.append(np.clip(corners, 0, [width - 1, height - 1]))
        boxes = np.array(found, np.float32).reshape(-1, 4, 2)
        return {self._output: boxes[_reading(boxes)]}


class Crops:
    """Cuts boxes out of `pixels`: a list of [1, 3, height, width] tensors for a reader.

    Widths are rounded up to a multiple, so that crops of like widths can be computed together.
    """

    def __init__(self, options: Options) -> None:
        """Read `pixels`, `boxes`, `output`, `height`, `width`, `multiple`, `mean`, `std`."""
        self._pixels = options.text("pixels", "pixels")
        self._boxes = options.text("boxes", "boxes")
        self._output = options.text("output", "crops")
        self._height = options.whole("height", 48)
        self._width = options.whole("width", 0)
        self._least = options.whole("least", 0)
        self._multiple = options.whole("multiple", 32)
        self._mean, self._std = options.number("mean", 0.5), options.number("std", 0.5)
        if min(self._height, self._multiple) < 1 or self._width < 0 or not self._std:
            raise options.bad("height and multiple must be 1 or more, and std not 0")
        self.takes = [
            TensorSpec(self._pixels, "uint8", (1, -1, -1, 3)),
            TensorSpec(self._boxes, "float32", (-1, 4, 2)),
        ]
        self.gives = [TensorSpec(self._output, "float32", (1, 3, self._height, -1))]

    def __call__(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Cut."""
        pixels = tensors[self._pixels][0]
        crops = [self._prepare(_cut(pixels, box)) for box in tensors[self._boxes]]
        return {self._output: crops}

    def _prepare(self, image: Array) -> Array:
        height, width = image.shape[:2]
        wide = max(1, round(width * self._height / height))
        room = self._width or max(self._least, wide + -wide % self._multiple)
        small = scaled(image, self._height, min(wide, room))
        full = np.zeros((1, 3, self._height, room), np.float32)
        # Networks of this family were trained on OpenCV's channel order, blue first.
        ready = (small[..., ::-1].astype(np.float32) / 255 - self._mean) / self._std
        full[0, :, :, : small.shape[1]] = ready.transpose(2, 0, 1)
        return full


class Turn:
    """Turns the boxes around whose text a classifier found upside down."""

    def __init__(self, options: Options) -> None:
        """Read `boxes`, `scores` (list of [1, 2]), `output`, `threshold`."""
        self._boxes = options.text("boxes", "boxes")
        self._scores = options.text("scores")
        self._output = options.text("output", "turned")
        self._threshold = options.number("threshold", 0.9)
        self.takes = [
            TensorSpec(self._boxes, "float32", (-1, 4, 2)),
            TensorSpec(self._scores, "float32", (-1, 2)),
        ]
        self.gives = [TensorSpec(self._output, "float32", (-1, 4, 2))]

    def __call__(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Turn."""
        boxes = tensors[self._boxes].copy()
        for index, scores in enumerate(tensors[self._scores]):
            if float(scores.reshape(-1)[1]) >= self._threshold:
                boxes[index] = np.roll(boxes[index], 2, axis=0)
        return {self._output: boxes}


def _mean(likely: Array, outline: Any) -> float:
    """Return how likely the pixels within an outline are text, on average."""
    left, top, width, height = cv2.boundingRect(outline)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [outline - np.array([left, top])], 1)
    return float(cv2.mean(likely[top : top + height, left : left + width], mask)[0])


def _ordered(points: Any) -> Array:
    """Return corners as top left, top right, bottom right, bottom left."""
    by_x = points[np.argsort(points[:, 0], kind="stable")]
    left = by_x[:2][np.argsort(by_x[:2, 1], kind="stable")]
    right = by_x[2:][np.argsort(by_x[2:, 1], kind="stable")]
    return np.array([left[0], right[0], right[1], left[1]], np.float32)


def _reading(boxes: Array) -> list[int]:
    """Return the order of boxes by lines, and within a line from left to right."""
    if not len(boxes):
        return []
    middle, height = boxes[..., 1].mean(axis=1), np.ptp(boxes[..., 1], axis=1)
    order = np.argsort(middle, kind="stable").tolist()
    lines: list[list[int]] = []
    for index in order:
        first = lines[-1][0] if lines else -1
        if lines and abs(middle[index] - middle[first]) < height[first] / 2:
            lines[-1].append(index)
        else:
            lines.append([index])
    return [i for line in lines for i in sorted(line, key=lambda i: boxes[i, :, 0].min())]


def _cut(pixels: Array, box: Array) -> Array:
    """Return the pixels of a box as an upright image; a tall one is laid on its side."""
    width = max(1, round(max(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[2] - box[3]))))
    height = max(1, round(max(np.linalg.norm(box[0] - box[3]), np.linalg.norm(box[1] - box[2]))))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(box.astype(np.float32), target)
    image = cv2.warpPerspective(
        pixels, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.ascontiguousarray(np.rot90(image)) if height >= 1.5 * width else np.asarray(image)
