"""The resume log of a generation: what the next worker must know to go on at the next token.

A sequence of varints: the seed, then `token + 1` for every delivered token, then 0 when the last
piece was delivered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmos.lib.errors import Internal


@dataclass(frozen=True)
class Progress:
    """What earlier workers have delivered."""

    seed: int
    tokens: Sequence[int]
    finished: bool


def begin(seed: int) -> bytes:
    """Return the first entry."""
    return _varint(seed)


def entry(tokens: Sequence[int], finished: bool) -> bytes:
    """Return what to append for one piece."""
    return b"".join(_varint(t + 1) for t in tokens) + (b"\0" if finished else b"")


def parse(data: bytes) -> Progress | None:
    """Return what a log says; None for an empty one. Raises Internal BAD_RESUME_LOG."""
    if not data:
        return None
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value)
            value, shift = 0, 0
    if shift or 0 in values[1:-1]:
        raise Internal("BAD_RESUME_LOG", "The stream cannot be resumed: its log is damaged.")
    seed, *rest = values
    finished = bool(rest) and rest[-1] == 0
    return Progress(seed, [v - 1 for v in (rest[:-1] if finished else rest)], finished)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
