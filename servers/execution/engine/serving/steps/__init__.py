"""Steps before and after a model, declared by name in `serving.toml` and `pipeline.toml`.

A step takes tensors by name and gives tensors by name; it keeps no state. Each module makes the
steps of one kind of data and imports what it needs when a step is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from llmos.lib.errors import FailedPrecondition
from llmos.servers.execution.engine.base import TensorSpec
from llmos.servers.execution.engine.serving.steps.options import Options

# Step -> (module, the package it needs beside NumPy).
_STEPS = {
    "tokenize": ("text", "tokenizers"),
    "ctc": ("text", ""),
    "pool": ("vectors", ""),
    "normalise": ("vectors", ""),
    "softmax": ("vectors", ""),
    "sigmoid": ("vectors", ""),
    "labels": ("vectors", ""),
    "image": ("image", "cv2"),
    "boxes": ("boxes", ""),
    "regions": ("regions", "cv2"),
    "crops": ("regions", "cv2"),
    "turn": ("regions", "cv2"),
    "audio": ("audio", "soundfile"),
}
_PACKAGES = {"cv2": "opencv-python-headless", "soundfile": "soundfile", "tokenizers": "tokenizers"}


class Step(Protocol):
    """One step. Any thread may call it."""

    @property
    def takes(self) -> Sequence[TensorSpec]:
        """Return what it needs."""

    @property
    def gives(self) -> Sequence[TensorSpec]:
        """Return what it adds."""

    def __call__(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Compute. Raises InvalidArgument BAD_INPUT for bytes or text that cannot be read."""


def make(table: Mapping[str, Any], options: Options) -> Step:
    """Make a step from its table; `options` reads the table.

    Raises Unavailable LOAD_FAILED for what is declared wrongly; FailedPrecondition MISSING_EXTRA.
    """
    name = options.text("step")
    if name not in _STEPS:
        raise options.bad(f"step {name!r} is not known; there are {', '.join(_STEPS)}")
    module, package = _STEPS[name]
    if package and find_spec(package) is None:
        raise FailedPrecondition(
            "MISSING_EXTRA",
            f"The step {name} needs {_PACKAGES[package]}, which is not installed: "
            "pip install 'llmos[execution]'.",
        )
    made = importlib.import_module(f"{__name__}.{module}")
    step: Step = getattr(made, name.capitalize())(options)
    options.end()
    return step
