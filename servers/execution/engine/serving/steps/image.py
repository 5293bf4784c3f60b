"""The step from image files, or pixels, to what a network takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from llmos.servers.execution.engine.base import TensorSpec
from llmos.servers.execution.engine.serving.steps.options import Options, refuse

Array = npt.NDArray[Any]
MAX_PIXELS = 1 << 26  # what a small file may unpack to: 64 megapixels


class Image:
    """Turns images into float32 tensors, resized and normalised.

    The input is BYTES [n] of image files, or UINT8 [n, height, width, 3] pixels in RGB order.
    """

    def __init__(self, options: Options) -> None:
        """Read how: see docs/models.md."""
        self._input = options.text("input", "image")
        self._output = options.text("output", "x")
        size = [int(s) for s in options.numbers("size", [])]
        if len(size) not in (0, 2) or any(s < 1 for s in size):
            raise options.bad("size must be [height, width]")
        self._size = (size[0], size[1]) if size else None
        self._fit = options.choice("fit", "stretch", "crop", "pad")
        self._side = options.choice("side", "longest", "shortest")
        self._limit = options.whole("limit", 0)  # of that side, when size is not given
        self._multiple = options.whole("multiple", 1)
        if self._multiple < 1 or self._limit < 0:
            raise options.bad("multiple must be 1 or more, and limit 0 or more")
        self._fill = options.number("fill", 0.0)
        self._scale = options.number("scale", 1 / 255)
        self._mean = np.array(options.numbers("mean", [0, 0, 0]), np.float32)
        self._std = np.array(options.numbers("std", [1, 1, 1]), np.float32)
        if self._mean.shape != (3,) or self._std.shape != (3,) or not self._std.all():
            raise options.bad("mean and std must be three numbers each, std not 0")
        self._bgr = options.choice("channels", "rgb", "bgr") == "bgr"
        self._last = options.choice("layout", "nchw", "nhwc") == "nhwc"
        self._pixels = options.text("pixels", "")  # output for the pixels themselves
        shape = (-1, -1, -1, 3) if self._last else (-1, 3, -1, -1)
        if self._size:
            height, width = self._size
            shape = (-1, height, width, 3) if self._last else (-1, 3, height, width)
        self.takes = [TensorSpec(self._input, "object", (-1,), raw=True)]
        self.gives = [TensorSpec(self._output, "float32", shape)]
        if self._pixels:
            self.gives.append(TensorSpec(self._pixels, "uint8", (-1, -1, -1, 3)))

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Read, resize, normalise. Raises BAD_INPUT for what is no image."""
        pixels = [decode(self._input, item) for item in images(self._input, tensors)]
        ready = [self._prepare(image) for image in pixels]
        if len({r.shape for r in ready}) > 1:
            raise refuse(f"Tensor {self._input!r} has images of several sizes; send one a request.")
        given = {self._output: np.stack(ready)}
        if self._pixels:
            if len(pixels) > 1:
                raise refuse(f"Tensor {self._input!r} has {len(pixels)} images; send one.")
            given[self._pixels] = pixels[0][None]
        return given

    def _prepare(self, image: Array) -> Array:
        image = self._resize(image).astype(np.float32)
        if self._bgr:
            image = image[..., ::-1]
        image = (image * self._scale - self._mean) / self._std
        return np.ascontiguousarray(image if self._last else image.transpose(2, 0, 1))

    def _resize(self, image: Array) -> Array:
        height, width = image.shape[:2]
        if self._size is None:
            side = max(height, width) if self._side == "longest" else min(height, width)
            over = side > self._limit if self._side == "longest" else side < self._limit
            ratio = self._limit / side if self._limit and over else 1.0
            new = [
                max(self._multiple, round(s * ratio / self._multiple) * self._multiple)
                for s in (height, width)
            ]
            return scaled(image, new[0], new[1])
        if self._fit == "stretch":
            return scaled(image, *self._size)
        ratios = self._size[0] / height, self._size[1] / width
        ratio = max(ratios) if self._fit == "crop" else min(ratios)
        near = max(1, round(height * ratio)), max(1, round(width * ratio))
        image = scaled(image, *near)
        if self._fit == "crop":
            top, left = (near[0] - self._size[0]) // 2, (near[1] - self._size[1]) // 2
            return image[top : top + self._size[0], left : left + self._size[1]]
        full = np.full((*self._size, 3), self._fill, image.dtype)
        full[: near[0], : near[1]] = image
        return full


def images(name: str, tensors: Mapping[str, Array]) -> list[Any]:
    """Return the images of a tensor of files or pixels. Raises BAD_INPUT."""
    array = tensors[name]
    if array.dtype == object:
        items = array.reshape(-1).tolist()
    elif array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3:
        items = list(array)
    else:
        raise refuse(
            f"Tensor {name!r} has datatype {array.dtype} and shape {list(array.shape)}; expected "
            "BYTES [n] of image files or UINT8 [n, height, width, 3]."
        )
    if not items:
        raise refuse(f"Tensor {name!r} has no image; send at least one.")
    return items


def decode(name: str, item: Any) -> Array:
    """Return an image as RGB pixels. Raises BAD_INPUT."""
    if isinstance(item, np.ndarray):
        if not item.size:
            raise refuse(f"Tensor {name!r} has an image without pixels.")
        return item
    data = np.frombuffer(item if isinstance(item, bytes) else b"", np.uint8)
    image = None
    if data.size:
        try:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        except cv2.error as exc:
            raise refuse(f"Tensor {name!r} has an image that cannot be read: {exc.err}.") from exc
    if image is None:
        raise refuse(
            f"Tensor {name!r} has {data.size} bytes that are no image that can be read; send PNG, "
            "JPEG, WebP, BMP or TIFF."
        )
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise refuse(f"Tensor {name!r} has an image of {image.shape[1]} x {image.shape[0]} pixels.")
    return np.ascontiguousarray(image[..., ::-1])


def scaled(image: Array, height: int, width: int) -> Array:
    """Return an image in another size (bilinear; area when it shrinks a lot)."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] > 2 * height and image.shape[1] > 2 * width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=how))
