"""A process that opens calls and does not read what comes back."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import grpc
import pytest
from blob_echo import BlobEcho

from llmos.api.kernel.v1 import port_pb2 as wire
from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.kernel.transport import attach
from llmos.kernel.transport.server import KernelServer
from llmos.lib import rpc
from llmos.lib.config import ServerConfig
from llmos.lib.port import ATTACH
from llmos.lib.serve import OPTIONS, Server


async def test_it_is_thrown_out_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "_MAX_UNREAD", 1 << 20)
    kernel, echo = KernelServer(), BlobEcho()
    address = f"unix:{tmp_path}/k.sock"
    await kernel.start([address])
    config = ServerConfig(state_dir=tmp_path, kernel=address)
    server = Server("storage", config, listen=False)
    server.add(registry_pb2_grpc.add_BlobsServicer_to_server, echo)
    await server.start()
    hello = wire.Hello(protocol=1, name="sleeper", instance="instance-sleeper")
    request = pb.ReadBlobRequest(length=10**6, offset=100_000).SerializeToString()
    asked = wire.Open(method="/llmos.api.storage.v1.Blobs/ReadBlob")
    first = wire.Frame(
        envelopes=[
            wire.Envelope(kind=wire.KIND_HELLO, hello=hello),
            *(
                wire.Envelope(call=n, kind=wire.KIND_OPEN, open=asked, flags=5, payload=request)
                for n in range(1, 17, 2)  # each may send a window of 4 MiB
            ),
        ]
    )
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        stream: Any = channel.stream_stream(ATTACH)()
        await stream.write(first.SerializeToString())
        await asyncio.wait_for(echo.cancelled.wait(), 20)  # its work is stopped
        names = {p.name for p in kernel.core.ports.values()}
        assert "storage" in names and "sleeper" not in names
        with pytest.raises(grpc.aio.AioRpcError) as info:  # when it reads at last, it is told
            while await asyncio.wait_for(stream.read(), 20) is not grpc.aio.EOF:
                pass
        assert rpc.from_rpc_error(info.value).reason == "NOT_READING"
    await server.stop(0)
    await kernel.stop(0)
    del stream, info
    gc.collect()  # CPython 3.11 (gh-106905) fails imports in which grpc's finalizers run
