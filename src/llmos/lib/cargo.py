"""Large DATA envelopes whose payload never enters a protobuf message.

Reading a payload out of a message copies it, as do setting it, encoding, and decoding: six copies
for each process that a tensor passes. The bytes on the wire are the same; only their reading and
writing is done here, by the encoding's rules (https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from typing import cast

from google.protobuf.message import DecodeError

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib.varint import read_varint

LARGE = 16 << 10  # payload bytes from which it pays

_VARINT, _BYTES = 0, 2
_ENTRY = pb.Frame.ENVELOPES_FIELD_NUMBER << 3 | _BYTES
_CALL = pb.Envelope.CALL_FIELD_NUMBER << 3 | _VARINT
_KIND = pb.Envelope.KIND_FIELD_NUMBER << 3 | _VARINT
_PAYLOAD = pb.Envelope.PAYLOAD_FIELD_NUMBER << 3 | _BYTES
_FLAGS = pb.Envelope.FLAGS_FIELD_NUMBER << 3 | _VARINT
_COOKIE = pb.Envelope.COOKIE_FIELD_NUMBER << 3 | _BYTES


class Cargo:
    """A DATA envelope; stands in for `pb.Envelope` wherever envelopes are passed on."""

    __slots__ = ("call", "cookie", "flags", "kind", "payload")

    def __init__(
        self, call: int, flags: int, payload: bytes | memoryview, cookie: bytes = b""
    ) -> None:
        """Take the fields. `payload` may be a view of a message: it must not change any more."""
        self.call = call
        self.kind = pb.KIND_DATA
        self.flags = flags
        self.payload = payload
        self.cookie = cookie

    def __deepcopy__(self, memo: object) -> Cargo:
        """Return one with a call id of its own, and the same bytes."""
        return Cargo(self.call, self.flags, self.payload, self.cookie)

    def head(self) -> bytes:
        """Return everything of the encoded envelope that comes before the payload's bytes."""
        rest = pb.Envelope(call=self.call, kind=pb.KIND_DATA, flags=self.flags, cookie=self.cookie)
        return rest.SerializeToString() + bytes((_PAYLOAD,)) + varint(len(self.payload))

    def SerializeToString(self, deterministic: bool = False) -> bytes:
        """Return the encoded envelope, as protobuf's method of this name."""
        return self.head() + bytes(self.payload)


def data(call: int, payload: bytes | memoryview, flags: int, cookie: bytes = b"") -> pb.Envelope:
    """Return a DATA envelope."""
    if len(payload) >= LARGE:
        return cast(pb.Envelope, Cargo(call, flags, payload, cookie))
    return pb.Envelope(
        call=call, kind=pb.KIND_DATA, payload=bytes(payload), flags=flags, cookie=cookie
    )


def varint(value: int) -> bytes:
    """Return a number in protobuf's encoding."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(view: memoryview, pos: int) -> tuple[int, int]:
    try:
        return read_varint(view, pos)
    except ValueError as exc:
        raise DecodeError(str(exc)) from exc


def unpack(frame: memoryview) -> list[pb.Envelope]:
    """Return the envelopes of an encoded Frame. Raises DecodeError."""
    if len(frame) < LARGE:
        return list(pb.Frame.FromString(bytes(frame)).envelopes)
    found: list[pb.Envelope] = []
    pos, start = 0, 0  # the small ones of [start:pos] are parsed together
    while pos < len(frame):
        tag, entry = _read_varint(frame, pos)
        if tag != _ENTRY:  # a field of another time: protobuf knows how to pass over it
            break
        size, entry = _read_varint(frame, entry)
        if entry + size > len(frame):
            raise DecodeError("An envelope is cut off.")
        cargo = _cargo(frame[entry : entry + size]) if size >= LARGE else None
        if cargo is not None:
            if pos > start:
                found.extend(pb.Frame.FromString(bytes(frame[start:pos])).envelopes)
            found.append(cast(pb.Envelope, cargo))
            start = entry + size
        pos = entry + size
    if start < len(frame):
        found.extend(pb.Frame.FromString(bytes(frame[start:])).envelopes)
    return found


def _cargo(view: memoryview) -> Cargo | None:
    """Return an encoded envelope as Cargo; None where it is not a plain DATA envelope."""
    numbers = {_CALL: 0, _KIND: 0, _FLAGS: 0}
    payload, cookie = b"", b""
    pos = 0
    while pos < len(view):
        tag, pos = _read_varint(view, pos)
        if tag in numbers:
            numbers[tag], pos = _read_varint(view, pos)
        elif tag in (_PAYLOAD, _COOKIE):
            size, pos = _read_varint(view, pos)
            if pos + size > len(view):
                raise DecodeError("A field is cut off.")
            if tag == _PAYLOAD:
                payload = bytes(view[pos : pos + size])
            else:
                cookie = bytes(view[pos : pos + size])
            pos += size
        else:
            return None
    if numbers[_KIND] != pb.KIND_DATA or numbers[_FLAGS] >> 32:
        return None
    return Cargo(numbers[_CALL], numbers[_FLAGS], payload, cookie)
