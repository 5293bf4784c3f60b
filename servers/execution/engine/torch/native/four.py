"""int4 matrices without the compiled kernel: what `llmos_pack` does, in torch's operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 32  # inputs that share a scale and a least weight
TILE = 16  # outputs computed together
_CUTS = (0.0, 0.05, 0.1, 0.15)  # shares of a group's range that are tried without


def pack4(weight: Tensor, outputs: int, padded: int) -> tuple[Tensor, Tensor]:
    """Round `weight`, float32 [out, in], to codes of 4 bits; return these and scales, tiled.

    As kernels.cpp's pack_group4: codes from end to end of a group's range, or by the best line
    through the codes of a shorter range, whichever has the least squared error.
    """
    inputs = weight.shape[1]
    whole = F.pad(weight, (0, 0, 0, outputs - weight.shape[0]))
    # What fills a last group up changes neither its range nor, as inputs there are 0, a product.
    whole = torch.cat((whole, whole[:, -1:].expand(-1, padded - inputs)), 1)
    groups = whole.view(-1, SMALL)
    low, high = groups.amin(-1), groups.amax(-1)
    best = _codes(groups, (high - low) / 15, low)
    for cut in _CUTS:
        off = cut * (high - low) / 2
        q = _codes(groups, (high - low - 2 * off) / 15, low + off)[0]
        sums = q.sum(-1), q.square().sum(-1), groups.sum(-1), (q * groups).sum(-1)
        spread = SMALL * sums[1] - sums[0].square()
        scale = torch.where(spread > 0, (SMALL * sums[3] - sums[0] * sums[2]) / spread, 0.0)
        other = _codes(groups, scale, (sums[2] - scale * sums[0]) / SMALL)
        better = other[3] < best[3]
        best = tuple(
            torch.where(better.view(-1, *[1] * (a.dim() - 1)), a, b)
            for a, b in zip(other, best, strict=True)
        )
    codes, scale, least, _ = best
    eights = codes.to(torch.int32).view(outputs // TILE, TILE, padded // 8, 4, 2)
    words = (eights << torch.arange(0, 16, 4, dtype=torch.int32)[:, None]).sum(-2)
    words = torch.where(words < 1 << 15, words, words - (1 << 16)).to(torch.int16)
    scales = torch.stack((scale, least), -1).half().view(outputs // TILE, TILE, -1, 2)
    return words.transpose(1, 2).contiguous(), scales.permute(0, 2, 3, 1).contiguous()


def _codes(groups: Tensor, scale: Tensor, least: Tensor) -> tuple[Tensor, ...]:
    """Return codes, scale and least weight as halves hold them, and the squared error."""
    scale, least = scale.half().float(), least.half().float()
    by = torch.where(scale > 0, 1 / scale, 0.0)
    codes = ((groups - least[:, None]) * by[:, None]).round_().clamp_(0, 15)
    off = codes * scale[:, None] + least[:, None] - groups
    return codes, scale, least, off.square_().sum(-1)


def unpack4(words: Tensor, scales: Tensor) -> Tensor:
    """Return what codes stand for, float32 [outputs, inputs]."""
    tiles, eights = words.shape[:2]
    shifts = torch.arange(0, 16, 4, dtype=torch.int32)[:, None]
    codes = words.transpose(1, 2).to(torch.int32)[..., None, :] >> shifts & 15
    codes = codes.reshape(tiles * TILE, -1, SMALL).float()
    pairs = scales.permute(0, 3, 1, 2).reshape(tiles * TILE, -1, 2).float()
    return (codes * pairs[..., :1] + pairs[..., 1:]).reshape(tiles * TILE, eights * 8)
