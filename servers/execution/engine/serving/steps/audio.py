"""The step from sound files to samples."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from llmos.servers.execution.engine.base import TensorSpec
from llmos.servers.execution.engine.serving.steps.options import Options, refuse

Array = npt.NDArray[Any]
_MAX_S = 3600.0


class Audio:
    """Turns BYTES [n] of sound files into float32 [n, samples] at one rate, one channel.

    Shorter ones are filled up with silence to the longest.
    """

    def __init__(self, options: Options) -> None:
        """Read `input`, `output`, `rate` (samples a second), `multiple` (of samples)."""
        self._input = options.text("input", "audio")
        self._output = options.text("output", "input")
        self._rate = options.whole("rate", 16_000)
        self._multiple = options.whole("multiple", 1)
        if self._rate < 1 or self._multiple < 1:
            raise options.bad("rate and multiple must be 1 or more")
        self.takes = [TensorSpec(self._input, "object", (-1,), raw=True)]
        self.gives = [TensorSpec(self._output, "float32", (-1, -1))]

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Read, mix to one channel, resample. Raises BAD_INPUT for what is no sound."""
        sounds = [self._read(item) for item in tensors[self._input].reshape(-1).tolist()]
        if not sounds:
            raise refuse(f"Tensor {self._input!r} has no sound; send at least one.")
        longest = max(len(s) for s in sounds)
        longest += -longest % self._multiple
        full = np.zeros((len(sounds), longest), np.float32)
        for row, sound in zip(full, sounds, strict=True):
            row[: len(sound)] = sound
        return {self._output: full}

    def _read(self, item: Any) -> Array:
        data = item if isinstance(item, bytes) else b""
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as file:
                if file.frames > _MAX_S * file.samplerate:
                    raise refuse(f"Tensor {self._input!r} has over an hour of sound; send parts.")
                samples = file.read(dtype="float32", always_2d=True).mean(axis=1)
                rate = file.samplerate
        except (soundfile.LibsndfileError, RuntimeError, TypeError) as exc:
            raise refuse(
                f"Tensor {self._input!r} has {len(data)} bytes that are no sound that can be read; "
                "send WAV, FLAC, OGG or MP3."
            ) from exc
        if not len(samples):
            raise refuse(f"Tensor {self._input!r} has a sound without samples.")
        if rate != self._rate:
            samples = soxr.resample(samples, rate, self._rate)
        found: Array = np.asarray(samples, np.float32)
        return found
