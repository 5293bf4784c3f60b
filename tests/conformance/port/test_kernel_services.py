"""Events, limits and recordings through a real kernel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from blob_echo import BlobEcho

from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc, events_pb2, events_pb2_grpc
from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.kernel.record import replay
from llmos.kernel.transport.server import KernelServer
from llmos.lib import rpc
from llmos.lib.config import ServerConfig
from llmos.lib.errors import InvalidArgument
from llmos.lib.port import Port
from llmos.lib.serve import Server


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    """A port at a kernel that records, with a server of Blobs beside it."""
    kernel = KernelServer(record=tmp_path / "run.rec")
    address = f"unix:{tmp_path}/k.sock"
    await kernel.start([address])
    server = Server("storage", ServerConfig(state_dir=tmp_path, kernel=address), listen=False)
    server.add(registry_pb2_grpc.add_BlobsServicer_to_server, BlobEcho())
    await server.start()
    port = Port(address, "client")
    await port.start()
    try:
        yield port
    finally:
        await port.stop(0)
        await server.stop(0)
        await kernel.stop(0)


async def test_publish_and_subscribe(port: Port) -> None:
    stub = events_pb2_grpc.EventsStub(port.channel)
    stream: Any = stub.Subscribe(events_pb2.SubscribeRequest(patterns=["model.*"], name="me"))
    await stream.initial_metadata()
    reply = await stub.Publish(events_pb2.PublishRequest(topic="model.loaded", payload=b"x"))
    assert reply.receivers == 1
    event = await asyncio.wait_for(stream.read(), 10)
    assert (event.topic, event.payload, event.publisher) == ("model.loaded", b"x", port.instance)
    await stub.Acknowledge(events_pb2.AcknowledgeRequest(name="me", ids=[event.id]))
    stream.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await stub.Publish(events_pb2.PublishRequest(topic="*"))
    assert rpc.from_rpc_error(info.value).reason == "BAD_TOPIC"


async def test_limits_hold_at_once(port: Port) -> None:
    admin = admin_pb2_grpc.AdminStub(port.channel)
    limits = admin_pb2.TenantLimits(tenant="local", weight=2, max_calls=1)
    await admin.UpdateLimits(admin_pb2.UpdateLimitsRequest(tenants=[limits]))
    blobs = registry_pb2_grpc.BlobsStub(port.channel)
    running = blobs.StatBlobs(pb.StatBlobsRequest(sha256=["sleep"]))
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await blobs.StatBlobs(pb.StatBlobsRequest(sha256=["a"]))
    error = rpc.from_rpc_error(info.value)
    assert (error.reason, error.retry_after_s) == ("QUOTA_CALLS", 0.5)
    running.cancel()
    limits.max_calls = 0
    await admin.UpdateLimits(admin_pb2.UpdateLimitsRequest(tenants=[limits]))
    listed = await admin.ListTenants(admin_pb2.ListTenantsRequest())
    assert [t.limits.weight for t in listed.tenants if t.limits.tenant == "local"] == [2]
    bad = admin_pb2.UpdateLimitsRequest(
        limits=admin_pb2.KernelLimits(ageing_s=-1),
        tenants=[admin_pb2.TenantLimits(tenant="local", weight=5)],
    )
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await admin.UpdateLimits(bad)
    assert rpc.from_rpc_error(info.value).reason == "BAD_LIMIT"
    again = await admin.ListTenants(admin_pb2.ListTenantsRequest())
    assert [t.limits.weight for t in again.tenants if t.limits.tenant == "local"] == [2]


async def test_a_recorded_run_replays_to_the_same_actions(port: Port, tmp_path: Path) -> None:
    blobs = registry_pb2_grpc.BlobsStub(port.channel)
    for i in range(20):
        await blobs.StatBlobs(pb.StatBlobsRequest(sha256=["x" * i]))
    async for _ in blobs.ReadBlob(pb.ReadBlobRequest(length=50, offset=100)):
        pass
    with pytest.raises(grpc.aio.AioRpcError):
        await blobs.StatBlobs(pb.StatBlobsRequest(sha256=["sleep"]), timeout=0.1)
    tenant = admin_pb2.TenantLimits(tenant="local", calls_per_s=0.001)
    limits = admin_pb2.UpdateLimitsRequest(tenants=[tenant])
    await admin_pb2_grpc.AdminStub(port.channel).UpdateLimits(limits)
    with pytest.raises(grpc.aio.AioRpcError) as info:
        for _ in range(3):
            await blobs.StatBlobs(pb.StatBlobsRequest(sha256=["x"]))
    assert info.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    lines = [json.loads(line) for line in replay(tmp_path / "run.rec")]
    summary = lines.pop()
    assert summary["events"] == len(lines) > 40
    assert summary["different"] == 0 and all(line["same"] for line in lines)


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no recording at all")
    with pytest.raises(InvalidArgument) as info:
        list(replay(tmp_path / "x"))
    assert info.value.reason == "BAD_RECORDING"
