"""The manager's side of Execution, and Pager: converts and delegates."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1 import execution_pb2_grpc, predict_pb2
from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.lib import call
from llmos.lib.errors import FailedPrecondition, InvalidArgument, NotFound
from llmos.lib.rpc import from_rpc_error
from llmos.servers.execution.manager.changes import Changes
from llmos.servers.execution.manager.core import Manager
from llmos.servers.execution.manager.listing import Row
from llmos.servers.execution.manager.model import Asker, Ref
from llmos.servers.execution.manager.routing import DirectRouter
from llmos.servers.execution.manager.starting import options_message, read_options


class ExecutionService(execution_pb2_grpc.ExecutionServicer):
    """Keyless methods. Without a kernel also the keyed ones, passed on to the model's worker."""

    def __init__(
        self, manager: Manager, direct: DirectRouter | None, changes: Changes | None = None
    ) -> None:
        """Serve `manager`; `direct` reaches its workers when there is no kernel."""
        self._manager = manager
        self._changes = changes or Changes(manager.rows)
        self._direct = direct

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        """List."""
        return pb.ListModelsResponse(models=[_model(r) for r in await self._manager.rows()])

    async def LoadModel(self, request: pb.LoadModelRequest, context: Any) -> pb.LoadModelResponse:
        """Load."""
        if request.pin and request.unpin:
            raise InvalidArgument("BAD_PIN", "Give either pin or unpin.")
        if request.dry_run:
            plan = await self._manager.plan(request.model)
            return pb.LoadModelResponse(
                model=await self._listed(plan.ref),
                needed_bytes=plan.bytes,
                device=plan.device,
                evict=plan.evict,
            )
        pin = True if request.pin else False if request.unpin else None
        options = read_options(request.options) if request.HasField("options") else None
        worker = await self._manager.load(request.model, pin, _asker(context), options, whole=True)
        return pb.LoadModelResponse(model=await self._listed(worker.ref))

    async def HoldModel(
        self, request: pb.HoldModelRequest, context: Any
    ) -> AsyncIterator[pb.HoldModelResponse]:
        """Hold."""
        held = self._manager.hold(request.model, _asker(context))
        async with contextlib.aclosing(held) as workers:  # type: ignore[type-var]
            async for worker in workers:
                if not call.resume_log(context):  # anything: then the next manager goes on with it
                    call.append_resume_log(context, b"held")
                yield pb.HoldModelResponse(model=await self._listed(worker.ref))

    async def _listed(self, ref: str) -> pb.Model:
        for row in await self._manager.rows():
            if row.version.ref == ref:
                return _model(row)
        raise NotFound("NO_SUCH_VERSION", f"{ref} was deleted meanwhile.")

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Any
    ) -> pb.UnloadModelResponse:
        """Unload."""
        return pb.UnloadModelResponse(
            was_loaded=await self._manager.unload(request.model, force=request.force)
        )

    async def Generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Pass on."""
        stub = await self._worker(request.model)
        stream = stub.Generate(request, timeout=context.time_remaining())
        async for reply in _passed(stream):
            yield reply

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        """Pass on."""
        stub = await self._worker(request.model)
        return await stub.Embed(request, timeout=context.time_remaining())

    async def Classify(
        self, request: predict_pb2.ClassifyRequest, context: Any
    ) -> predict_pb2.ClassifyResponse:
        """Pass on."""
        stub = await self._worker(request.model)
        return await stub.Classify(request, timeout=context.time_remaining())

    async def Predict(
        self, request: predict_pb2.PredictRequest, context: Any
    ) -> predict_pb2.PredictResponse:
        """Pass on."""
        stub = await self._worker(request.model)
        return await stub.Predict(request, timeout=context.time_remaining())

    async def PredictStream(
        self, request: predict_pb2.PredictStreamRequest, context: Any
    ) -> AsyncIterator[predict_pb2.PredictStreamResponse]:
        """Pass on."""
        stub = await self._worker(request.model)
        stream = stub.PredictStream(request, timeout=context.time_remaining())
        async for reply in _passed(stream):
            yield reply

    async def WatchModels(
        self, request: pb.WatchModelsRequest, context: Any
    ) -> AsyncIterator[pb.WatchModelsResponse]:
        """Tell what is and what changes."""
        async with contextlib.aclosing(self._changes.of(request.model)) as changes:  # type: ignore[type-var]
            async for row, deleted in changes:
                yield pb.WatchModelsResponse(model=_model(row), deleted=deleted)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        """Pass on."""
        stub = await self._worker(request.model)
        return await stub.Tokenize(request, timeout=context.time_remaining())

    async def _worker(self, model: str) -> execution_pb2_grpc.ExecutionAsyncStub:
        """Return the worker of a model. Raises as Manager.load; FailedPrecondition NOT_A_WORKER."""
        Ref.parse(model)
        if self._direct is None:
            raise FailedPrecondition(
                "NOT_A_WORKER",
                f"{model} is not served here but by its worker; make this call to the kernel.",
            )
        return execution_pb2_grpc.ExecutionStub(
            self._direct.channel(self._manager.next_of(await self._manager.load(model)))
        )


class PagerService(admin_pb2_grpc.PagerServicer):
    """Loads what the kernel misses."""

    def __init__(self, manager: Manager) -> None:
        """Serve `manager`."""
        self._manager = manager

    async def Fault(self, request: admin_pb2.FaultRequest, context: Any) -> admin_pb2.FaultResponse:
        """Make a key hot; all services of a worker have the same keys."""
        await self._manager.fault(request.key, _asker(context))
        return admin_pb2.FaultResponse()


def _asker(context: Any) -> Asker:
    return Asker(call.rank(context), call.tenant(context))


async def _passed(stream: Any) -> AsyncIterator[Any]:
    """Yield what a worker streams; ends the worker's call when the caller goes away."""
    try:
        async for reply in stream:
            yield reply
    except grpc.RpcError as exc:
        raise from_rpc_error(exc) from exc
    finally:
        stream.cancel()  # nothing happens when it has ended


def _model(row: Row) -> pb.Model:
    message = pb.Model(
        name=row.version.name,
        version=row.version.version,
        state=pb.ModelState.ValueType(row.state.value),
        reason=row.reason,
        engine=row.engine,
        task=row.version.task,
        context_length=row.version.context_length,
        created_unix_s=row.version.created_unix_s,
        is_default=row.is_default,
        adapter=row.version.adapter,
        base=row.version.base if row.version.adapter else "",
        aliases=row.version.aliases,
    )
    if (worker := row.worker) is not None:
        message.device = worker.device
        message.pid = worker.pid
        message.granted_bytes = sum(w.granted_bytes for w in row.workers)
        message.used_bytes = sum(w.used_bytes for w in row.workers)
        message.context_length = worker.context_length or message.context_length
        message.keys[:] = worker.keys
        message.options.CopyFrom(options_message(worker.options))
        message.pinned = worker.pinned
        message.leases = worker.leases
        message.tenant = worker.tenant
        message.load_s = worker.load_s
    for worker in row.workers:
        message.instances.add(
            number=worker.replica,
            state=pb.ModelState.ValueType(worker.state.value),
            pid=worker.pid,
            device=worker.device,
            threads=worker.threads,
            cpus=worker.cpus,
            granted_bytes=worker.granted_bytes,
            used_bytes=worker.used_bytes,
        )
    return message
