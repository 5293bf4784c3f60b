"""Chooses the next token. The choice is a function of (logits, settings, seed, position) only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_HEAD = 1024  # the nucleus is looked for among this many tokens before all are sorted


@dataclass(frozen=True)
class Sampler:
    """temperature 0 = greedy; top_k 0 = all; top_p 1 = all; seed: 64 bits."""

    temperature: float
    top_p: float
    top_k: int
    seed: int


def noise(seed: int, position: int) -> float:
    """Return the one uniform number in [0, 1) that decides about `position`.

    Philox is counter-based: no state has to travel with a stream that moves to another worker.
    """
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def choose(
    logits: Tensor, samplers: Sequence[Sampler], positions: Sequence[int]
) -> list[int | None]:
    """Return a token for each row of `logits`, float32 [rows, vocab]; None where it has no number.

    Each row is decided by itself: neighbours have no influence.
    """
    best, greedy = (part.tolist() for part in logits.max(-1))
    chosen: list[int | None] = []
    for row, (sampler, position) in enumerate(zip(samplers, positions, strict=True)):
        if not np.isfinite(best[row]):
            chosen.append(None)
        elif sampler.temperature == 0 or sampler.top_k == 1:
            chosen.append(greedy[row])
        else:
            chosen.append(_sample(logits[row], sampler, noise(sampler.seed, position)))
    return chosen


def _sample(row: Tensor, s: Sampler, u: float) -> int:
    """Invert the cumulative distribution at `u`, likeliest tokens first when some are cut off."""
    vocab = row.shape[0]
    row = row / s.temperature
    if s.top_k == 0 and s.top_p == 1:
        return _pick(torch.softmax(row, -1), u)
    if s.top_k:
        values, ids = row.topk(min(s.top_k, vocab))
        kept = torch.softmax(values, -1)
    else:
        total = row.logsumexp(-1)
        values, ids = row.topk(min(_HEAD, vocab))
        kept = (values - total).exp()
        if s.top_p < 1 and float(kept.sum()) < s.top_p:
            values, ids = row.sort(descending=True, stable=True)
            kept = (values - total).exp()
    if s.top_p < 1:
        before = kept.double().cumsum(-1) - kept
        kept = kept[: max(1, int((before < s.top_p).sum()))]
    return int(ids[_pick(kept, u)])


def _pick(weights: Tensor, u: float) -> int:
    """Return the index where the running sum of `weights` passes the fraction `u` of its total."""
    sums = weights.double().cumsum(-1)
    # Rounding can put u * total at the very end: the last index is then the right one.
    index = int(torch.searchsorted(sums, u * float(sums[-1]), right=True))
    return min(index, len(weights) - 1)
