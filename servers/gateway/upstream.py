"""The backend that is a real LLM OS: the Execution service over a gRPC channel."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1 import execution_pb2_grpc
from llmos.lib.errors import DeadlineExceeded, NotFound
from llmos.lib.rpc import from_rpc_error
from llmos.servers.gateway.backend import Call

SERVICE = "llmos.api.execution.v1.Execution"
_HEALTH_TIMEOUT_S = 2.0
# What a model reference may look like; anything else is no key, and not fit for a header.
_REFERENCE = re.compile(r"[A-Za-z0-9._@-]{1,160}")


def _keyed(call: Call, model: str) -> tuple[tuple[str, str], ...]:
    # A kernel that has just started learns from exports where requests have their key. Calls that
    # the port opens again may reach it earlier, so they bring the key along.
    if _REFERENCE.fullmatch(model):
        return (*call.metadata, ("llmos-key", model))
    return call.metadata


class Upstream:
    """Calls Execution; the only place of the gateway that knows gRPC."""

    def __init__(self, channel: grpc.aio.Channel, far_end: str) -> None:
        """Call over `channel`, the caller's to close; far_end is the process at its other end."""
        self._far_end = far_end
        self._execution = execution_pb2_grpc.ExecutionStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    async def generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Yield the pieces; closing the generator cancels the call. Raises LLMOSError."""
        rpc = self._execution.Generate(
            request, timeout=call.timeout_s, metadata=_keyed(call, request.model)
        )
        try:
            async for piece in rpc:
                yield piece
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from None
        finally:
            rpc.cancel()  # does nothing to a call that has ended

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """Return the vectors. Raises LLMOSError."""
        try:
            return await self._execution.Embed(
                request, timeout=call.timeout_s, metadata=_keyed(call, request.model)
            )
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from None

    async def list_models(self, call: Call) -> Sequence[pb.Model]:
        """Return all model versions. Raises LLMOSError."""
        try:
            reply = await self._execution.ListModels(
                pb.ListModelsRequest(), timeout=call.timeout_s, metadata=call.metadata
            )
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from None
        return reply.models

    async def missing(self) -> list[str]:
        """Return what is missing, asked from the health service of whoever is at the other end."""
        try:
            reply = await self._health.Check(
                health_pb2.HealthCheckRequest(service=SERVICE), timeout=_HEALTH_TIMEOUT_S
            )
        except grpc.RpcError as exc:
            error = from_rpc_error(exc)
            if isinstance(error, NotFound):
                return [f"execution: nobody serves {SERVICE} yet"]
            if isinstance(error, DeadlineExceeded):
                return [f"{self._far_end}: no answer within {_HEALTH_TIMEOUT_S:g} s"]
            return [f"{self._far_end}: {error}"]
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            return [f"execution: nobody serves {SERVICE} now"]
        return []
