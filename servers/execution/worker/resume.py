"""The resume log of a generation: what the next worker must know to go on at the next token.

A sequence of varints: the seed, then the version of the adapter when one was named, then
`token + 1` for every delivered token, then 0 when the last piece was delivered.
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
    adapter: int = 0  # version of the adapter that was named; a newer one gives other tokens


def begin(seed: int, adapter: int = 0) -> bytes:
    """Return the first entry. adapter: version of the one that was named."""
    return _varint(seed) + (_varint(adapter) if adapter else b"")


def entry(tokens: Sequence[int], finished: bool) -> bytes:
    """Return what to append for one piece."""
    return b"".join(_varint(t + 1) for t in tokens) + (b"\0" if finished else b"")


def parse(data: bytes, *, adapted: bool = False) -> Progress | None:
    """Return what a log says; None for an empty one. Raises Internal BAD_RESUME_LOG.

    adapted: the request names an adapter.
    """
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
    adapter = rest.pop(0) if adapted and rest else 0
    finished = bool(rest) and rest[-1] == 0
    tokens = [v - 1 for v in (rest[:-1] if finished else rest)]
    return Progress(seed, tokens, finished, adapter)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
