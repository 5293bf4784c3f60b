"""HTTP/2 and gRPC framing by hand, so that tests can lie in it (RFC 9113, RFC 7541)."""

from __future__ import annotations

import socket

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return one HTTP/2 frame."""
    return lying_frame(len(payload), kind, flags, stream, payload)


def lying_frame(length: int, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame that claims a length of its own."""
    return length.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def hello() -> bytes:
    """Return what a client starts with."""
    return PREFACE + frame(SETTINGS)


def _text(value: bytes) -> bytes:
    """Return an HPACK string literal without Huffman coding (RFC 7541 section 5.2)."""
    length = len(value)
    if length < 127:
        return bytes((length,)) + value
    head, length = bytearray((127,)), length - 127
    while length >= 128:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head) + value


def header_block(path: str, *more: tuple[str, bytes]) -> bytes:
    """Return the headers of a gRPC request, as literals without indexing."""
    pairs = [
        (":method", b"POST"),
        (":scheme", b"http"),
        (":path", path.encode()),
        (":authority", b"localhost"),
        ("content-type", b"application/grpc"),
        ("te", b"trailers"),
        *more,
    ]
    return b"".join(b"\x00" + _text(name.encode()) + _text(value) for name, value in pairs)


def request(stream: int, path: str, *more: tuple[str, bytes]) -> bytes:
    """Return the HEADERS frame that opens a call."""
    return frame(HEADERS, END_HEADERS, stream, header_block(path, *more))


def message(payload: bytes, claim: int | None = None, compressed: int = 0) -> bytes:
    """Return a gRPC message with the length it has, or claims."""
    length = len(payload) if claim is None else claim
    return bytes((compressed,)) + length.to_bytes(4, "big") + payload


def connect(address: str) -> socket.socket:
    """Return a connection to a gRPC address on a Unix socket."""
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(10)
    made.connect(address.removeprefix("unix:"))
    return made


def pour(connection: socket.socket, data: bytes) -> None:
    """Send for as long as the other side takes it."""
    try:
        connection.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return  # it hung up, as it may


def drain(connection: socket.socket, seconds: float) -> bytes:
    """Return what the other side says until it hangs up, or is silent for `seconds`."""
    connection.settimeout(seconds)
    said = bytearray()
    try:
        while data := connection.recv(1 << 16):
            said += data
    except (TimeoutError, ConnectionResetError):
        pass
    return bytes(said)
