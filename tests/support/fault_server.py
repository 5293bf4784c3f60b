"""A real server process for fault tests: `STATE_DIR NAME CREDITS STALL_MS`.

It writes what happens to its calls to STATE_DIR/journal, a line each: pid, event, id. Calls name
their id and how long they take.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc, state_pb2, state_pb2_grpc
from llmos.lib import call, log
from llmos.lib.config import ServerConfig
from llmos.lib.port import ExportSpec
from llmos.lib.serve import Server


class Journal:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, event: str, name: str) -> None:
        os.write(self._file, f"{os.getpid()} {event} {name}\n".encode())

    def began(self, name: str) -> bool:
        """Return whether a call was begun before, here or by another process."""
        return any(line.endswith(f" start {name}") for line in self._path.read_text().splitlines())

    async def work(self, name: str, seconds: float) -> None:
        self.note("start", name)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.note("cancel", name)
            raise
        self.note("end", name)


class Worker(registry_pb2_grpc.BlobsServicer):
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def StatBlobs(self, request: pb.StatBlobsRequest, context: Any) -> pb.StatBlobsResponse:
        """Idempotent: sha256 is [id, seconds]; answers with the pid.

        An id that starts with `again` takes its time only once: so a test can count on its not
        having ended when its server is killed, and need not wait for it elsewhere.
        """
        name, seconds = request.sha256
        if name.startswith("again") and self._journal.began(name):
            seconds = "0"
        await self._journal.work(name, float(seconds))
        return pb.StatBlobsResponse(sizes=[os.getpid()])

    async def ReadBlob(
        self, request: pb.ReadBlobRequest, context: Any
    ) -> AsyncIterator[pb.ReadBlobResponse]:
        """Stream `length` pieces, one in `offset` ms; resumable when the id starts with `r`."""
        for number in range(len(call.resume_log(context)), request.length):
            if request.sha256.startswith("r"):
                call.append_resume_log(context, b".")
            yield pb.ReadBlobResponse(data=number.to_bytes(4, "big"))
            await self._journal.work(request.sha256, request.offset / 1000)


class Puts(state_pb2_grpc.DocumentsServicer):
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def PutDocument(
        self, request: state_pb2.PutDocumentRequest, context: Any
    ) -> state_pb2.PutDocumentResponse:
        """Not idempotent: takes as many seconds as its content type says."""
        await self._journal.work(request.key, float(request.content_type))
        return state_pb2.PutDocumentResponse(document=state_pb2.Document(key=request.key))


async def main() -> None:
    state_dir, name, credits, stall_ms = sys.argv[1:]
    journal = Journal(Path(state_dir) / "journal")

    async def once(request: bytes, context: Any) -> bytes:
        """Not idempotent: the request is `id seconds`."""
        told, seconds = request.decode().split()
        await journal.work(told, float(seconds))
        return told.encode()

    server = Server(name, ServerConfig(state_dir=Path(state_dir)), listen=False)
    add = registry_pb2_grpc.add_BlobsServicer_to_server
    worker: Any = Worker(journal)  # type: ignore[abstract]
    puts: Any = Puts(journal)  # type: ignore[abstract]
    server.add(state_pb2_grpc.add_DocumentsServicer_to_server, puts)
    server.add(add, worker, credits=int(credits), stall_ms=int(stall_ms))
    assert server.port is not None
    handlers: dict[str, Any] = {"Once": grpc.unary_unary_rpc_method_handler(once)}
    server.port.serve(ExportSpec("fault.Test"), handlers)
    await server.run(ready=lambda: journal.note("ready", name))


if __name__ == "__main__":
    log.setup(sys.argv[2])
    asyncio.run(main())
