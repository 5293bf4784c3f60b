"""Texts as vectors: the hidden states after the last norm, as the mean or of the last token."""

from __future__ import annotations

from collections.abc import Sequence as Listing

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmos.servers.execution.engine.torch.sampling import Sampler
from llmos.servers.execution.engine.torch.sequence import Plan, Sequence
from llmos.servers.execution.engine.torch.text import TextStream
from llmos.servers.execution.engine.torch.tokenizer import TextTokenizer

POOLINGS = ("mean", "last")
_NO_SAMPLER = Sampler(0, 1, 0, 0)


class Pooled(Sequence):
    """A text that is read and not continued. Owned by the step loop once submitted."""

    def __init__(self, tokens: Listing[int], tokenizer: TextTokenizer, pooling: str) -> None:
        """Read `tokens`, not empty. pooling: one of POOLINGS."""
        super().__init__(Plan(tokens, 1, _NO_SAMPLER), TextStream(tokenizer, ()), frozenset())
        self._mean = pooling == "mean"
        self._sum = torch.zeros(0)
        self.vector: npt.NDArray[np.float32] | None = None

    @property
    def whole(self) -> bool:
        """See Sequence: the mean is one of all tokens' states."""
        return self._mean

    def begin(self, cached: int) -> None:
        """See Sequence."""
        super().begin(cached)
        self._sum = torch.zeros(0)

    def guess(self) -> list[int]:
        """Return nothing: it is not continued."""
        return []

    def shown(self, end: int) -> range:
        """Return the positions before `end`, not yet read, whose states are needed."""
        if self._mean:
            return range(self.fed, end)
        return range(end - 1, end if end == len(self.tokens) else end - 1)

    def take(self, states: Tensor, end: int) -> bool:
        """Add the states of `shown(end)` [positions, hidden]; True when the vector is there.

        A sum in float64 does not show where the text was cut. The vector stays None when a number
        is not finite.
        """
        self._sum = states.double().sum(0) + (self._sum if len(self._sum) else 0)
        if end < len(self.tokens):
            return False
        length = self._sum.norm()
        if bool(torch.isfinite(length)):
            self.vector = (self._sum / length.clamp_min(1e-12)).float().cpu().numpy()
            self.finish = "stop"
        return True
