"""Asking a process for its health over gRPC; the only gRPC that init does as a client."""

from __future__ import annotations

import os

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmos.servers.init.unit import Health

# Each check connects afresh: a shared subchannel would wait out its back-off after a restart.
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


class GrpcProbe:
    """Checks `grpc.health.v1` of a whole server (the empty service name)."""

    async def check(self, address: str, timeout_s: float) -> Health:
        """Return what the process at `address` says of itself within `timeout_s`."""
        if address.startswith("unix:") and not os.path.exists(address.removeprefix("unix:")):
            return Health.SILENT
        async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
            except grpc.aio.AioRpcError as exc:
                silent = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                return Health.SILENT if exc.code() in silent else Health.NOT_SERVING
        serving = reply.status == health_pb2.HealthCheckResponse.SERVING
        return Health.SERVING if serving else Health.NOT_SERVING
