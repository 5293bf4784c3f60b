"""Chooses the next tokens of a batch. A choice is a function of (logits, settings, seed, position).

Rows are decided together but each by itself: every operation here works along a row in an order
that does not depend on the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llmos.servers.execution.engine.base import TokenLogprob

# The likeliest so many tokens, among which a cut is looked for before all are sorted.
_HEAD = 128


@dataclass(frozen=True)
class Sampler:
    """temperature 0 = greedy; top_k 0 = all; top_p 1 = all; min_p 0 = all; seed: 64 bits.

    repetition divides (or multiplies, below zero) the logits of tokens that came before, in the
    prompt or since (Keskar et al. 2019); presence and frequency are subtracted from those that
    were generated, once and for each time. bias is added. logprobs: how many of the likeliest to
    report beside the chosen one; None = nothing.
    """

    temperature: float
    top_p: float
    top_k: int
    seed: int
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        """Say whether no noise is needed."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def whole(self) -> bool:
        """Say whether all tokens may be chosen."""
        return self.top_k == 0 and self.top_p == 1 and self.min_p == 0


@dataclass(frozen=True)
class Row:
    """One choice to make. tokens: all before it; the first `prompt` were given, not generated.

    allowed: bits of the tokens that may follow, int32 [ceil(vocab / 32)]; None = all.
    """

    sampler: Sampler
    tokens: Sequence[int]
    prompt: int
    allowed: Tensor | None = None


@dataclass(frozen=True)
class Choice:
    """A token, and what was asked about its likelihood."""

    token: int
    logprob: TokenLogprob | None = None


def noise(seed: int, position: int) -> float:
    """Return the one uniform number in [0, 1) that decides about `position`.

    Philox is counter-based: no state has to travel with a stream that moves to another worker.
    """
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def choose(logits: Tensor, rows: Sequence[Row]) -> list[Choice | None]:
    """Return a choice for each row of `logits`, float32 [rows, vocab]; None where it has no number.

    Changes `logits`.
    """
    if not rows:
        return []
    reports = _reports(logits, rows)
    for i, row in enumerate(rows):
        _penalise(logits[i], row)
    _add_bias(logits, rows)
    for i, row in enumerate(rows):
        _mask(logits[i], row)
    tokens, best = _largest(logits)
    for sampled, whole in ((_rows(rows, whole=True), True), (_rows(rows, whole=False), False)):
        sampled = [i for i in sampled if np.isfinite(best[i])]
        if sampled:
            chosen = _sample(logits[sampled], [rows[i] for i in sampled], whole)
            for i, token in zip(sampled, chosen, strict=True):
                tokens[i] = token
    return [
        Choice(token, reports[i](token) if i in reports else None) if np.isfinite(top) else None
        for i, (token, top) in enumerate(zip(tokens, best, strict=True))
    ]


def _largest(logits: Tensor) -> tuple[list[int], list[float]]:
    """Return each row's likeliest token, of equals the first, and its logit; NaN where one is."""
    if logits.device.type != "cpu":
        best, tokens = logits.max(-1)
        return tokens.tolist(), best.tolist()
    lines = logits.numpy()  # numpy's takes a seventh of the time of torch's
    found = lines.argmax(-1)
    return found.tolist(), lines[np.arange(len(lines)), found].tolist()


def _rows(rows: Sequence[Row], *, whole: bool) -> list[int]:
    return [i for i, r in enumerate(rows) if not r.sampler.greedy and r.sampler.whole == whole]


class _Report:
    """The model's own log probabilities of one row, before any setting changed them."""

    def __init__(self, logits: Tensor, count: int) -> None:
        self._all = torch.log_softmax(logits, -1)
        top = self._all.topk(count)
        self._top = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))

    def __call__(self, token: int) -> TokenLogprob:
        return TokenLogprob(token, float(self._all[token]), self._top)


def _reports(logits: Tensor, rows: Sequence[Row]) -> dict[int, _Report]:
    return {
        i: _Report(logits[i], row.sampler.logprobs)
        for i, row in enumerate(rows)
        if row.sampler.logprobs is not None
    }


def _penalise(line: Tensor, row: Row) -> None:
    """Apply the penalties to one row of logits, in place."""
    s = row.sampler
    if s.repetition != 1:
        seen = torch.tensor(sorted(set(row.tokens)), device=line.device)
        values = line[seen]
        line[seen] = torch.where(values > 0, values / s.repetition, values * s.repetition)
    if s.presence or s.frequency:
        counts = Counter(row.tokens[row.prompt :])
        if counts:
            made = torch.tensor(list(counts), device=line.device)
            times = torch.tensor(list(counts.values()), dtype=torch.float32, device=line.device)
            line[made] -= s.presence + s.frequency * times


def _add_bias(logits: Tensor, rows: Sequence[Row]) -> None:
    """Add the biases of all rows, in place and in one go."""
    biased = [(i, *item) for i, row in enumerate(rows) for item in row.sampler.bias.items()]
    if biased:
        lines, tokens, values = (list(part) for part in zip(*biased, strict=True))
        if logits.device.type == "cpu":
            logits.numpy()[lines, tokens] += np.array(values, np.float32)
        else:
            logits[lines, tokens] += torch.tensor(values, device=logits.device)


def _mask(line: Tensor, row: Row) -> None:
    """Leave one row of logits only what is allowed, in place."""
    if row.allowed is not None:
        bits = torch.arange(32, dtype=torch.int32)
        allowed = (row.allowed[:, None] >> bits & 1).bool().flatten()[: len(line)]
        line.masked_fill_(~allowed.to(line.device), -torch.inf)


def _sample(logits: Tensor, rows: Sequence[Row], whole: bool) -> list[int]:
    """Invert the cumulative distributions, likeliest tokens first when some are cut off."""
    heat = torch.tensor([r.sampler.temperature for r in rows], device=logits.device)
    likely = torch.softmax(logits / heat[:, None], -1)
    luck = torch.tensor(
        [noise(r.sampler.seed, len(r.tokens)) for r in rows],
        dtype=torch.float64,
        device=logits.device,
    )
    if whole:
        return _pick(likely.double().cumsum(-1), luck, None)
    result = [0] * len(rows)
    open_ = list(range(len(rows)))
    for head in (_HEAD, likely.shape[1]):
        part, mine = likely[open_], [rows[i] for i in open_]
        width = min(head, part.shape[1])
        values, ids = part.topk(width) if width < part.shape[1] else _sorted(part)
        kept = _kept(values, mine)
        picked = _pick(values.double().cumsum(-1), luck[open_], kept)
        tokens = ids.gather(1, torch.tensor(picked, device=ids.device)[:, None])[:, 0].tolist()
        whole_head = width == part.shape[1]
        found = [
            whole_head or _decided(row.sampler, width, count)
            for row, count in zip(mine, kept.tolist(), strict=True)
        ]
        for i, token, sure in zip(open_, tokens, found, strict=True):
            if sure:
                result[i] = token
        open_ = [i for i, sure in zip(open_, found, strict=True) if not sure]
        if not open_:
            break
    return result


def _decided(s: Sampler, width: int, count: int) -> bool:
    """Say whether the `width` likeliest tokens suffice to know that `count` are left."""
    if 0 < s.top_k <= width:
        return True
    # top_p is a share of what top_k leaves, which is not known yet; else the cut lies within.
    return count < width and (s.top_k == 0 or s.top_p == 1)


def _sorted(likely: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities falling, and their indices; of equals the lower index first."""
    if likely.device.type != "cpu":
        values, ids = likely.sort(dim=-1, descending=True, stable=True)
        return values, ids
    # Numbers that are not negative are in the order of their bits: two passes of numpy's radix
    # sort over 16 bits each take a twentieth of the time of torch's sort by comparison.
    order = np.empty(likely.shape, np.int64)
    for line, keys in zip(order, ~likely.numpy().view(np.uint32), strict=True):
        low = np.argsort(keys.astype(np.uint16), kind="stable")
        line[:] = low[np.argsort((keys >> 16).astype(np.uint16)[low], kind="stable")]
    ids = torch.from_numpy(order)
    return likely.gather(1, ids), ids


def _kept(values: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return how many of each row's `values`, which fall, are left by top_k, top_p and min_p."""
    device, width = values.device, values.shape[1]
    k = torch.tensor([r.sampler.top_k or width for r in rows], device=device).clamp_max(width)
    cut = torch.tensor([0 < r.sampler.top_k <= width for r in rows], device=device)
    p = torch.tensor([r.sampler.top_p for r in rows], dtype=torch.float64, device=device)
    least = torch.tensor([r.sampler.min_p for r in rows], device=device)
    sums = values.double().cumsum(-1)
    total = torch.where(cut, sums.gather(1, k[:, None] - 1)[:, 0], 1.0)
    # top_p of 1 cuts nothing, whatever the sums were rounded to.
    p = torch.where(p < 1, p * total, torch.inf)
    keep = torch.arange(width, device=device) < k[:, None]
    keep &= (sums - values) < p[:, None]
    keep &= values >= least[:, None] * values[:, :1]
    keep[:, 0] = True
    return keep.sum(-1)


def _pick(sums: Tensor, luck: Tensor, kept: Tensor | None) -> list[int]:
    """Return each row's index where the running `sums` pass the fraction `luck` of its total."""
    last = torch.full_like(luck, sums.shape[1] - 1, dtype=torch.int64) if kept is None else kept - 1
    total = sums.gather(1, last[:, None])[:, 0]
    index = torch.searchsorted(sums, (luck * total)[:, None], right=True)[:, 0]
    # Rounding can put luck * total at the very end: the last index is then the right one.
    return list(torch.minimum(index, last).tolist())
