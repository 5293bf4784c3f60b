"""A real server of storage's Blobs whose first life deadlocks in StatBlobs: `STATE_DIR FLAG`.

The first call that finds the file FLAG takes it away and waits, in a thread, for a lock that it
holds; the event loop, and so its health service, goes on. Later calls answer at once.
"""

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib import log
from llmos.lib.config import ServerConfig
from llmos.lib.serve import Server


class Stuck(registry_pb2_grpc.BlobsServicer):
    def __init__(self, flag: Path) -> None:
        self._flag = flag
        self._lock = threading.Lock()

    async def StatBlobs(self, request: pb.StatBlobsRequest, context: Any) -> pb.StatBlobsResponse:
        if self._flag.exists():
            self._flag.unlink()
            await asyncio.to_thread(self._deadlock)
        return pb.StatBlobsResponse(sizes=[0 for _ in request.sha256])

    def _deadlock(self) -> None:
        with self._lock, self._lock:
            pass


async def main() -> None:
    server = Server("stuck", ServerConfig(state_dir=Path(sys.argv[1])))
    add = registry_pb2_grpc.add_BlobsServicer_to_server
    server.add(add, Stuck(Path(sys.argv[2])), stall_ms=1000)  # type: ignore[abstract]
    await server.run()


if __name__ == "__main__":
    log.setup("stuck")
    asyncio.run(main())
