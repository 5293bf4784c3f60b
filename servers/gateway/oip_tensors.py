"""Tensors of the Open Inference Protocol: JSON numbers and the binary extension, as raw bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

from llmos.lib.errors import InvalidArgument

# struct's letters; BF16 is done through float32, BYTES by hand.
_LETTERS = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_FLOATS = ("FP16", "FP32", "FP64", "BF16")
DATATYPES = (*_LETTERS, "BF16", "BYTES")


def bad(message: str) -> InvalidArgument:
    """Return the error for a tensor."""
    return InvalidArgument("BAD_TENSOR", message)


def pack(name: str, datatype: str, data: object) -> bytes:
    """Return JSON data, flat or nested, as row-major little-endian bytes. Raises BAD_TENSOR."""
    if datatype not in DATATYPES:
        raise bad(f"Tensor {name!r} has datatype {datatype[:20]!r}; {', '.join(DATATYPES)} are.")
    values = list(_flat(data))
    if datatype == "BYTES":
        return b"".join(_element(name, value) for value in values)
    allowed = (bool,) if datatype == "BOOL" else (int, float) if datatype in _FLOATS else (int,)
    for value in values:
        if not isinstance(value, allowed) or (datatype != "BOOL" and isinstance(value, bool)):
            raise bad(f"Tensor {name!r} has {str(value)[:40]!r}, which is no {datatype}.")
    try:
        if datatype == "BF16":
            words = struct.unpack(f"<{len(values)}I", struct.pack(f"<{len(values)}f", *values))
            return struct.pack(f"<{len(values)}H", *(_round(word) for word in words))
        return struct.pack(f"<{len(values)}{_LETTERS[datatype]}", *values)
    except (struct.error, OverflowError) as exc:
        raise bad(f"Tensor {name!r} has a number that does not fit {datatype} ({exc}).") from exc


def _round(word: int) -> int:
    """Return the upper half of a float32, rounded to even."""
    return min((word + 0x7FFF + (word >> 16 & 1)) >> 16, 0xFFFF)


def unpack(name: str, datatype: str, raw: bytes) -> list[Any]:
    """Return raw bytes as flat JSON data. Raises InvalidArgument NOT_JSON for what JSON lacks."""
    if datatype == "BYTES":
        return [_text(name, part) for part in _parts(raw)]
    if datatype == "BF16":
        words = struct.unpack(f"<{len(raw) // 2}H", raw)
        wide = struct.pack(f"<{len(words)}I", *(word << 16 for word in words))
        values: tuple[Any, ...] = struct.unpack(f"<{len(words)}f", wide)
    else:
        letter = _LETTERS[datatype]
        values = struct.unpack(f"<{len(raw) // struct.calcsize(letter)}{letter}", raw)
    if datatype in _FLOATS and not all(map(math.isfinite, values)):
        raise _not_json(name, "numbers that are not finite")
    return list(values)


def _not_json(name: str, what: str) -> InvalidArgument:
    return InvalidArgument(
        "NOT_JSON", f"Output {name!r} has {what}, which JSON cannot say; ask for binary data."
    )


def _flat(data: object) -> Iterable[Any]:
    stack = [iter([data])]
    while stack:
        for value in stack[-1]:
            if isinstance(value, list):
                stack.append(iter(value))
                break
            yield value
        else:
            stack.pop()


def _element(name: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise bad(f"Tensor {name!r} has {str(value)[:40]!r}, which is no text.")
    raw = value.encode("utf-8", "surrogatepass")
    return struct.pack("<I", len(raw)) + raw


def _parts(raw: bytes) -> Iterable[bytes]:
    at = 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        yield raw[at + 4 : at + 4 + size]
        at += 4 + size


def _text(name: str, part: bytes) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError:
        raise _not_json(name, "bytes that are no text") from None
