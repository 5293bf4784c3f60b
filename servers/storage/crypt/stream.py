"""Sealed files: AES-256-GCM in chunks, each bound to its place, readable at any offset.

The STREAM construction of V. T. Hoang, R. Reyhanitabar, P. Rogaway and D. Vizár, "Online
Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance" (CRYPTO 2015): the nonce of a chunk
is a random prefix, the chunk's number and whether it is the last, so that chunks cannot be
changed, moved, repeated or cut off without being noticed.

    file   = header, chunk 0, chunk 1, ... last chunk
    header = magic (8 bytes), log2 of the chunk size (1), nonce prefix (7); authenticated with each
    chunk  = up to 64 KiB of ciphertext and its 16-byte tag; the last may be shorter, or empty in
             an empty file
    nonce  = prefix (7), number of the chunk, big-endian (4), 1 in the last chunk, else 0 (1)

A key seals one file only.
"""

from __future__ import annotations

import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"LLMOSAE1"
HEADER = 16
TAG = 16
_LOG2 = 16
CHUNK = 1 << _LOG2
KEY = 32


class Tampered(Exception):
    """A chunk is not what was sealed, or the key is another one."""


def sealed_size(size: int) -> int:
    """Return the bytes that a sealed file of `size` plain bytes has."""
    return HEADER + size + TAG * chunks(size)


def chunks(size: int) -> int:
    """Return the number of chunks of `size` plain bytes; an empty file has one."""
    return max(1, -(-size // CHUNK))


class Sealer:
    """Turns plain bytes, in any pieces, into a sealed file. Use once."""

    def __init__(self, key: bytes, header: bytes = b"", number: int = 0) -> None:
        """Start a file under a fresh key of 32 bytes, or go on.

        header, number: to go on after a file's first `number` chunks, none of them its last.
        """
        self._header = header or MAGIC + bytes([_LOG2]) + os.urandom(7)
        self._cipher = AESGCM(key)
        self._left = bytearray()
        self._number = number
        self._begun = bool(header)

    @property
    def held(self) -> int:
        """Return how many of the last plain bytes are not written yet."""
        return len(self._left)

    def _seal(self, chunk: bytes | bytearray | memoryview, last: bool) -> bytes:
        nonce = _nonce(self._header, self._number, last)
        self._number += 1
        return self._cipher.encrypt(nonce, bytes(chunk), self._header)

    def update(self, data: bytes) -> bytes:
        """Return what can be written after `data`; the rest follows later."""
        out = [] if self._begun else [self._header]
        self._begun = True
        self._left += data
        whole = max(0, (len(self._left) - 1) // CHUNK)  # the last chunk is known at the end only
        if whole:
            with memoryview(self._left) as view:
                out += [self._seal(view[i * CHUNK : (i + 1) * CHUNK], False) for i in range(whole)]
            del self._left[: whole * CHUNK]
        return b"".join(out)

    def finish(self) -> bytes:
        """Return the end of the file."""
        return self.update(b"") + self._seal(self._left, True)


class Opener:
    """Opens parts of a sealed file whose plain size is known. Thread-safe."""

    def __init__(self, key: bytes, header: bytes, size: int) -> None:
        """Raises Tampered when `header` is none."""
        if len(header) != HEADER or header[:9] != MAGIC + bytes([_LOG2]):
            raise Tampered("its header is not one of a sealed file")
        self._header = header
        self._cipher = AESGCM(key)
        self._size = size

    def span(self, offset: int, length: int) -> tuple[int, int, int]:
        """Return (first chunk, where its bytes begin in the file, bytes to read) for a range."""
        first = offset // CHUNK
        end = min(-(-(offset + length) // CHUNK), chunks(self._size))
        start = HEADER + first * (CHUNK + TAG)
        stop = min(HEADER + end * (CHUNK + TAG), sealed_size(self._size))
        return first, start, max(0, stop - start)

    def open(self, first: int, sealed: bytes) -> tuple[bytes, int]:
        """Return the plain bytes of whole chunks, `first` on, and the offset of their first one.

        Raises Tampered.
        """
        out, last = [], chunks(self._size) - 1
        step = CHUNK + TAG
        for i in range(0, len(sealed), step):
            number = first + i // step
            nonce = _nonce(self._header, number, number == last)
            try:
                out.append(self._cipher.decrypt(nonce, sealed[i : i + step], self._header))
            except (InvalidTag, ValueError) as exc:
                raise Tampered(f"chunk {number} was changed") from exc
        return b"".join(out), first * CHUNK


def _nonce(header: bytes, number: int, last: bool) -> bytes:
    return header[9:] + struct.pack(">IB", number, last)
