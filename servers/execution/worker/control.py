"""The worker's side of WorkerControl: what it is, and what it is called."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from llmos.api.execution.v1 import worker_pb2 as pb
from llmos.api.execution.v1 import worker_pb2_grpc
from llmos.api.execution.v1.zygote_pb2 import WorkerInfo, WorkerOrder
from llmos.lib import log as logs
from llmos.lib.serve import Server
from llmos.servers.execution.engine.base import EngineInfo


def info_of(order: WorkerOrder, engine: EngineInfo, granted: int) -> WorkerInfo:
    """Return what this worker is."""
    return WorkerInfo(
        ref=order.ref,
        pid=os.getpid(),
        engine=engine.engine,
        task=engine.task,
        device=engine.device,
        granted_bytes=granted,
        keys=[order.ref, *order.keys],
        pinned=order.pinned,
        context_length=engine.context_length or order.context_length,
        listen=order.listen,
        options=order.options,
        replica=order.replica,
        threads=order.threads,
        draft=order.draft.ref,
        log_level=order.log_level,
    )


def instance_key(info: WorkerInfo) -> str:
    """Return the key by which this very worker's inference service is found, for the manager."""
    return f"{info.ref}#{info.replica}"


class WorkerControl(worker_pb2_grpc.WorkerControlServicer):
    """Owns the keys under which the worker's services are exported."""

    def __init__(self, server: Server, info: WorkerInfo, execution: str, inference: str) -> None:
        """Start from `info`; the services named are those exported under its keys."""
        self._server = server
        self._info = info
        self._execution, self._inference = execution, inference
        self._changing = asyncio.Lock()

    async def DescribeWorker(
        self, request: pb.DescribeWorkerRequest, context: Any
    ) -> pb.DescribeWorkerResponse:
        """Answer with the present state."""
        return pb.DescribeWorkerResponse(worker=self._info)

    async def ConfigureWorker(
        self, request: pb.ConfigureWorkerRequest, context: Any
    ) -> pb.ConfigureWorkerResponse:
        """Export under the new keys, then answer."""
        async with self._changing:
            keys = [self._info.ref, *request.keys]
            if self._server.port is not None and keys != list(self._info.keys):
                more = [*keys, instance_key(self._info)]
                await self._server.port.set_keys(self._execution, keys)
                await self._server.port.set_keys(self._inference, more)
            self._info.keys[:] = keys
            self._info.pinned = request.pinned
            self._info.options.instances = request.instances or self._info.options.instances
            return pb.ConfigureWorkerResponse(worker=self._info)

    async def LogWorker(self, request: pb.LogWorkerRequest, context: Any) -> pb.LogWorkerResponse:
        """Log these levels from now on."""
        logs.show(request.log_level)
        self._info.log_level = request.log_level
        return pb.LogWorkerResponse()
