"""Steps from text to tokens, and from a reader's network to text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.lib.encoder import TextEncoder
from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.engine.base import TensorSpec
from llmos.servers.execution.engine.serving.steps.options import Options, refuse

Array = npt.NDArray[Any]


class Tokenize:
    """Turns `text` [n] into input_ids, attention_mask and token_type_ids [n, longest]."""

    def __init__(self, options: Options) -> None:
        """Read `input`, `max_length` (0 = what the model's files say)."""
        self._input = options.text("input", "text")
        try:
            self._encoder = TextEncoder(options.files, options.whole("max_length", 0))
        except InvalidArgument as exc:
            raise options.bad(exc.message.rstrip(".")) from exc
        self.takes = [TensorSpec(self._input, "object", (-1,))]
        self.gives = [
            TensorSpec(name, "int64", (-1, -1))
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ]

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Tokenize. Raises BAD_INPUT for what is no text, and for none."""
        texts = [as_text(self._input, item) for item in tensors[self._input].reshape(-1).tolist()]
        if not texts or not all(texts):
            raise refuse(f"Tensor {self._input!r} has no text, or an empty one; leave it out.")
        return dict(self._encoder.batch([self._encoder.encode(text) for text in texts]))


class Ctc:
    """Reads text out of [n, steps, characters] scores: the likeliest of each step, joined.

    Greedy decoding of connectionist temporal classification (Graves et al. 2006): equal
    neighbours count once, and class 0 is "nothing".
    """

    def __init__(self, options: Options) -> None:
        """Read `input`, `output`, `score`, `characters` (a list, a file, or the model file's)."""
        self._input = options.text("input")
        self._output = options.text("output", "text")
        self._score = options.text("score", "score")
        characters = options.lines("characters")
        if not characters:
            characters = options.metadata.get("character", "").splitlines()
        if not characters:
            raise options.bad("characters is missing, and the model file has none")
        self._characters = ["", *characters, " "]
        self.takes = [TensorSpec(self._input, "float32", (-1, -1, -1))]
        self.gives = [
            TensorSpec(self._output, "object", (-1,)),
            TensorSpec(self._score, "float32", (-1,)),
        ]

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Read; the score is the mean over the characters read, 0 for none."""
        scores = tensors[self._input]
        best, sure = scores.argmax(axis=-1), scores.max(axis=-1)
        texts, means = np.empty(len(best), object), np.zeros(len(best), np.float32)
        for row in range(len(best)):
            read, found = [], []
            at = 0
            for index, run in itertools.groupby(best[row].tolist()):
                if 0 < index < len(self._characters):
                    read.append(self._characters[index])
                    found.append(float(sure[row, at]))
                at += len(list(run))
            texts[row] = "".join(read)
            means[row] = float(np.mean(found)) if found else 0.0
        return {self._output: texts, self._score: means}


def as_text(name: str, item: Any) -> str:
    """Return an element of a tensor of strings as text. Raises BAD_INPUT when it is not UTF-8."""
    if isinstance(item, str):
        return item
    try:
        return bytes(item).decode()
    except (UnicodeDecodeError, TypeError) as exc:
        raise refuse(f"Tensor {name!r} has an element that is not UTF-8 text: {exc}.") from exc
