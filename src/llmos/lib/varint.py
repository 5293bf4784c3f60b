"""Numbers in protobuf's encoding: https://protobuf.dev/programming-guides/encoding/#varints."""

from __future__ import annotations


def read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return the number at `at` and where it ends. Raises ValueError: cut off, or too long."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("A number is cut off or too long.")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
