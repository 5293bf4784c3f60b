"""Finding one string field of a serialized message without parsing the rest."""

from __future__ import annotations

from llmos.lib.errors import InvalidArgument
from llmos.lib.varint import read_varint

_BAD = "The first message of the call does not parse: it is cut off or not a protobuf message."


def string_field(data: bytes, field: int, cut: bool = False) -> str:
    """Return the last value of string field number `field`; "" when it is not there.

    cut: `data` is only the first piece of a message, so another field may run past its end.
    Encoding: https://protobuf.dev/programming-guides/encoding/. Raises InvalidArgument
    BAD_MESSAGE.
    """
    tag = field << 3 | 2
    if tag < 0x80 and len(data) > 1 and data[0] == tag and data[1] < 0x80:
        end = 2 + data[1]  # the usual case: the field comes first, is short, and comes once
        if end <= len(data) and (end == len(data) or data[end] != tag):
            return _text(data[2:end])
    at, key, found = 0, 0, b""
    try:
        while at < len(data):
            key = 0
            key, at = read_varint(data, at)
            wire = key & 7
            if wire == 2:
                size, at = read_varint(data, at)
                if at + size > len(data):
                    raise ValueError(_BAD)
                if key == tag:
                    found = data[at : at + size]
                at += size
            elif wire == 0:
                _, at = read_varint(data, at)
            elif wire == 1:
                at += 8
            elif wire == 5:
                at += 4
            else:
                raise ValueError(_BAD)
    except ValueError as exc:
        if not cut or key == tag:
            raise InvalidArgument("BAD_MESSAGE", _BAD) from exc
    return _text(found)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidArgument("BAD_MESSAGE", _BAD) from None
