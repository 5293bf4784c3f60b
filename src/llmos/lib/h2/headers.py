"""Header blocks of one direction of a connection, decoded by the `hpack` package."""

from __future__ import annotations

from typing import cast

from hpack import Decoder
from hpack.exceptions import HPACKError

from llmos.lib.h2 import wire

_CACHED = 64


class ProtocolError(Exception):
    """The other end broke the protocol; the connection ends with `code` (RFC 9113, 7)."""

    def __init__(self, code: int, why: str) -> None:
        """Say which rule."""
        super().__init__(why)
        self.code = code


class HeaderBlocks:
    """Owns the decoder's table, which every block may change."""

    def __init__(self, limit: int) -> None:
        """Start with an empty table. limit: bytes of a header list from which it is refused."""
        self._decoder = Decoder(max_header_list_size=limit)
        self._known: dict[bytes, list[tuple[str, str]]] = {}

    def decode(self, block: bytes) -> list[tuple[str, str]]:
        """Return the headers of a block. Raises ProtocolError."""
        # A block that only points into the tables means the same until the tables change.
        known = self._known.get(block)
        if known is not None:
            return known
        try:
            headers = cast("list[tuple[str, str]]", self._decoder.decode(block))
        except (HPACKError, UnicodeDecodeError) as exc:
            raise ProtocolError(wire.COMPRESSION_ERROR, f"bad header block: {exc}") from exc
        if min(block, default=0) >= 0x80 and 0xFF not in block:
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[block] = headers
        else:
            self._known.clear()
        return headers
