"""What manager, zygote and workers agree on: frames on their sockets, and names of workers.

A frame is 4 bytes of length, then a message.
"""

from __future__ import annotations

import struct
from typing import TypeVar

from google.protobuf.message import Message

_LENGTH = struct.Struct("<I")
MAX_FRAME = 1 << 20

M = TypeVar("M", bound=Message)


class BadFrame(Exception):
    """The other side sent what is not a frame; the connection is of no use any more."""


def pack(message: Message) -> bytes:
    """Return the frame of a message."""
    data = message.SerializeToString()
    return _LENGTH.pack(len(data)) + data


def unpack(buffer: bytearray, kind: type[M]) -> M | None:
    """Take the first whole frame out of `buffer`; None when there is none yet. Raises BadFrame."""
    if len(buffer) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack_from(buffer)
    if size > MAX_FRAME:
        raise BadFrame(f"frame of {size} bytes")
    end = _LENGTH.size + size
    if len(buffer) < end:
        return None
    data = bytes(buffer[_LENGTH.size : end])
    del buffer[:end]
    try:
        return kind.FromString(data)
    except Exception as exc:  # protobuf's DecodeError differs between its implementations
        raise BadFrame(str(exc)) from exc


def name_of(ref: str, replica: int) -> str:
    """Return a worker's name: its port, its record and its log are called by it."""
    return f"{ref}#{replica}" if replica else ref
