"""Reading blobs of a storage server at the speed of its disk, from its direct address.

    await read_blob(df.direct_address, sha256, file.write)

The address is what `Maintenance/Df` tells. The bytes are taken as they come from the socket, and
never enter a protobuf message; what is spoken is `Blobs/ReadBlob` all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from google.protobuf.message import DecodeError

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.lib.errors import Internal
from llmos.lib.h2.client import connect
from llmos.lib.status import from_wire

READ_BLOB = "/llmos.api.storage.v1.Blobs/ReadBlob"
_DATA = pb.ReadBlobResponse.DATA_FIELD_NUMBER << 3 | 2  # a message of nothing but `data`
_WINDOW = 16 << 20  # bytes: with 4 MiB the sender waits for us half the time; all are taken at once


async def read_blob(
    address: str,
    sha256: str,
    take: Callable[[memoryview], object],
    *,
    offset: int = 0,
    length: int = 0,
) -> int:
    """Give a range of a blob to `take`, piece by piece; return its bytes. length 0 = to the end.

    A piece is good during its call only. Raises what ReadBlob says, Unavailable CONNECTION_FAILED,
    and what `take` raises.
    """
    loop = asyncio.get_running_loop()
    connection = await connect(address, _WINDOW)
    ended: asyncio.Future[tuple[int, str, list[tuple[str, str | bytes]]]] = loop.create_future()
    total = 0

    def on_view(message: memoryview) -> None:
        nonlocal total
        try:
            piece = data_of(message)
            take(piece)
            total += len(piece)
        except Exception as exc:  # of `take`: its caller is to have it, and not the event loop
            stream.reset()
            if not ended.done():
                ended.set_exception(exc)

    def on_end(code: int, message: str, trailers: list[tuple[str, str | bytes]]) -> None:
        if not ended.done():
            ended.set_result((code, message, trailers))

    try:
        stream = connection.open(READ_BLOB, "storage")
        stream.on_view, stream.on_end = on_view, on_end
        request = pb.ReadBlobRequest(sha256=sha256, offset=offset, length=length)
        stream.send(request.SerializeToString())
        stream.half_close()
        code, message, trailers = await ended
    finally:
        connection.close()
    if code:
        raise from_wire(code, message, trailers)
    return total


def data_of(message: memoryview) -> memoryview:
    """Return the field `data` of an encoded ReadBlobResponse, in place where it is alone in it.

    Raises Internal BAD_MESSAGE.
    """
    size = shift = 0
    for at, byte in enumerate(message[1:11], 2):
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if message[0] == _DATA and at + size == len(message):
                return message[at:]
            break
    try:
        return memoryview(pb.ReadBlobResponse.FromString(bytes(message)).data)
    except DecodeError as exc:
        raise Internal("BAD_MESSAGE", f"A message of the storage server is damaged: {exc}") from exc
