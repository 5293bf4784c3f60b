"""The bytes of HTTP/2 and gRPC: frame heads, header blocks, metadata, status messages."""

from __future__ import annotations

import base64
import binascii
import struct
import urllib.parse
import zlib
from collections.abc import Iterable, Sequence

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 5, 6, 7, 8, 9
ENHANCE_YOUR_CALM = 11
SET_HEADER_TABLE_SIZE, SET_MAX_CONCURRENT_STREAMS, SET_INITIAL_WINDOW = 1, 3, 4
SET_MAX_FRAME, SET_MAX_HEADER_LIST = 5, 6

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEFAULT_WINDOW = 65_535
MAX_WINDOW = (1 << 31) - 1
DEFAULT_FRAME = 16_384

Metadata = Sequence[tuple[str, str | bytes]]
HEAD = struct.Struct(">HBBBI")
_NOT_METADATA = frozenset(
    "te content-type grpc-timeout grpc-encoding grpc-accept-encoding grpc-status grpc-message "
    "connection content-length host".split()
)
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def frame_head(size: int, kind: int, flags: int, stream: int) -> bytes:
    """Return the 9 bytes before a frame's payload (RFC 9113, 4.1)."""
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a whole frame."""
    return frame_head(len(payload), kind, flags, stream) + payload


def message_head(stream: int, size: int) -> bytes:
    """Return what comes before a message of `size` bytes that is one DATA frame."""
    return frame_head(size + 5, DATA, 0, stream) + b"\0" + size.to_bytes(4, "big")


def settings(pairs: dict[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    payload = b"".join(struct.pack(">HI", key, value) for key, value in pairs.items())
    return frame(SETTINGS, 0, 0, payload)


def window_update(stream: int, count: int) -> bytes:
    """Return a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, count.to_bytes(4, "big"))


def _integer(value: int, prefix_bits: int, first: int) -> bytes:
    """Return an integer of a header block (RFC 7541, 5.1)."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def header(name: bytes, value: bytes) -> bytes:
    """Return a header as a literal that enters no table (RFC 7541, 6.2.2): no state to keep."""
    return b"\x00" + _integer(len(name), 7, 0) + name + _integer(len(value), 7, 0) + value


def metadata_block(metadata: Metadata) -> bytes:
    """Return gRPC metadata as a part of a header block."""
    block = b""
    for key, value in metadata:
        raw = value if isinstance(value, bytes) else value.encode()
        if key.endswith("-bin"):
            raw = base64.b64encode(raw).rstrip(b"=")
        block += header(key.lower().encode(), raw)
    return block


RESPONSE = b"\x88" + header(b"content-type", b"application/grpc")
RESPONSE += header(b"grpc-accept-encoding", b"identity, deflate, gzip")
OK_TRAILERS = header(b"grpc-status", b"0")


def trailers_block(code: int, message: str, metadata: Metadata = ()) -> bytes:
    """Return the header block that ends a call."""
    if code == 0 and not message and not metadata:
        return OK_TRAILERS
    block = header(b"grpc-status", str(code).encode())
    if message:
        quoted = urllib.parse.quote(message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}")
        block += header(b"grpc-message", quoted.encode())
    return block + metadata_block(metadata)


def request_block(path: str, authority: str, metadata: Metadata = ()) -> bytes:
    """Return the header block that opens a call."""
    block = b"\x83\x86"  # :method POST, :scheme http
    for name, value in (
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"llmos-port"),
    ):
        block += header(name, value)
    return block + metadata_block(metadata)


def metadata_of(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str | bytes]]:
    """Return the custom metadata among headers. Raises ValueError for a -bin that is not base64."""
    found: list[tuple[str, str | bytes]] = []
    for key, value in headers:
        if key.startswith(":") or key in _NOT_METADATA:
            continue
        if key.endswith("-bin"):
            for part in value.split(","):
                found.append((key, _base64(part)))
        else:
            found.append((key, value))
    return found


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as exc:
        raise ValueError(str(exc)) from exc


def status_message(quoted: str) -> str:
    """Return the text of a grpc-message."""
    return urllib.parse.unquote(quoted, errors="replace")


def timeout_s(text: str) -> float:
    """Return the seconds of a grpc-timeout. Raises ValueError."""
    digits, unit = text[:-1], text[-1:]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 8 and unit in _UNITS):
        raise ValueError(f"bad grpc-timeout {text!r}")
    return int(digits) * _UNITS[unit]


def decompress(data: bytes, encoding: str, limit: int) -> bytes | None:
    """Return a compressed message, or None when it gives more than `limit` bytes.

    Raises ValueError when the encoding is not one of ours or the bytes are not of it.
    """
    wbits = {"gzip": 31, "deflate": 15}.get(encoding)
    if wbits is None:
        raise ValueError(f"unknown grpc-encoding {encoding!r}")
    inflater = zlib.decompressobj(wbits)
    try:
        plain = inflater.decompress(data, limit + 1)
    except zlib.error as exc:
        raise ValueError(str(exc)) from exc
    return None if len(plain) > limit else plain
