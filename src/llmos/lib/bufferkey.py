"""A buffer handle as text, for protocols that name shared memory by a string."""

from __future__ import annotations

import re

from llmos.api.memory.v1.buffers_pb2 import BufferHandle
from llmos.lib.errors import InvalidArgument

_KEY = re.compile(r"([^:\s]{1,128}):([0-9a-f]{2,256}):(\S{0,256}):([1-9][0-9]{0,15})")


def key_of(handle: BufferHandle) -> str:
    """Return `ID:TOKEN:HOST:SIZE` of a handle; who knows it may open the buffer."""
    return f"{handle.id}:{handle.token.hex()}:{handle.host}:{handle.size}"


def handle_of(key: str) -> BufferHandle:
    """Return the handle that a key stands for. Raises InvalidArgument BAD_REGION."""
    match = _KEY.fullmatch(key)
    if match is None or len(match[2]) % 2:
        raise InvalidArgument(
            "BAD_REGION",
            "The key is not that of a buffer of the memory server (ID:TOKEN:HOST:SIZE, see "
            "llmos.lib.bufferkey), nor a name that shm_allow in [execution] allows; create a "
            "buffer there, or have the name allowed.",
        )
    return BufferHandle(
        id=match[1], token=bytes.fromhex(match[2]), host=match[3], size=int(match[4])
    )
