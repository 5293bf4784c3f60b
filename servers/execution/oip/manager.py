"""The manager's side of the Open Inference Protocol: the server and its model repository."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version as installed_version
from typing import Any, Protocol

from llmos.api.inference import open_inference_pb2 as pb
from llmos.lib.call import tenant
from llmos.lib.errors import InvalidArgument, NotFound, Unavailable, Unimplemented
from llmos.servers.execution.manager.listing import Row
from llmos.servers.execution.manager.model import Ref, State, Worker
from llmos.servers.execution.oip import settings
from llmos.servers.execution.oip.base import Refusing
from llmos.servers.execution.oip.regions import Regions
from llmos.servers.execution.oip.sums import total

_EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
)
_STATES = {
    State.STORED: "UNAVAILABLE",
    State.LOADING: "LOADING",
    State.READY: "READY",
    State.UNLOADING: "UNLOADING",
    State.FAILED: "UNAVAILABLE",
}


class Models(Protocol):
    """What is needed of the manager's core."""

    async def rows(self) -> Sequence[Row]:
        """Return all versions, by name and version. Raises Unavailable without storage."""

    async def load(self, ref: str) -> object:
        """Load a model and wait until it is ready. Raises as Execution/LoadModel."""

    async def unload(self, ref: str) -> object:
        """Unload a model; OK when it is not loaded. Raises InvalidArgument BAD_NAME."""


class ManagerInference(Refusing):
    """The keyless methods of the protocol."""

    def __init__(
        self,
        core: Models,
        regions: Regions | None = None,
        statistics: Callable[[Worker], Awaitable[pb.ModelStatistics]] | None = None,
        log: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """Answer from `core`; `statistics` asks a worker for its own, `log` changes all logs."""
        self._core = core
        self._regions = regions
        self._statistics = statistics
        self._log = log

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Any
    ) -> pb.ServerLiveResponse:
        """Say that it lives."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Any
    ) -> pb.ServerReadyResponse:
        """Say whether storage answers."""
        try:
            await self._core.rows()
        except Unavailable:
            return pb.ServerReadyResponse(ready=False)
        return pb.ServerReadyResponse(ready=True)

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Any
    ) -> pb.ModelReadyResponse:
        """Say whether a model is loaded."""
        ref = _ref(request.name, request.version)
        ready = any(
            row.state is State.READY
            and row.version.name == ref.name
            and (row.version.version == ref.version or (not ref.version and row.is_default))
            for row in await self._core.rows()
        )
        return pb.ModelReadyResponse(ready=ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Any
    ) -> pb.ServerMetadataResponse:
        """Say what this is."""
        return pb.ServerMetadataResponse(
            name="llmos", version=installed_version("llmos"), extensions=_EXTENSIONS
        )

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Any
    ) -> pb.ModelStatisticsResponse:
        """Ask the workers."""
        ref = _ref(request.name, request.version) if request.name else Ref("")
        versions = [
            [worker for worker in row.workers if worker.state is State.READY]
            for row in await self._core.rows()
            if row.worker is not None
            and row.state is State.READY
            and row.version.name == (ref.name or row.version.name)
            and row.version.version == (ref.version or row.version.version)
            and (not ref.alias or str(ref) in row.worker.keys)
        ]
        if request.name and not versions:
            raise NotFound(
                "NOT_LOADED", f"{ref} is not loaded, so there is nothing to tell; call it first."
            )
        found = await asyncio.gather(*(self._of(workers) for workers in versions))
        return pb.ModelStatisticsResponse(model_stats=found)

    async def _of(self, workers: Sequence[Worker]) -> pb.ModelStatistics:
        if self._statistics is None:
            raise Unavailable("NO_WORKERS", "Workers cannot be asked here.")
        return total(await asyncio.gather(*map(self._statistics, workers)))

    async def LogSettings(
        self, request: pb.LogSettingsRequest, context: Any
    ) -> pb.LogSettingsResponse:
        """Change what is logged, and tell what is."""
        chosen = settings.changed(request)
        if request.settings and self._log is not None:
            await self._log(chosen)
        return settings.described()

    async def TraceSetting(
        self, request: pb.TraceSettingRequest, context: Any
    ) -> pb.TraceSettingResponse:
        """Refuse, and say where traces are."""
        raise Unimplemented(
            "NO_TRACE",
            "This server has no trace settings: `llmos-ctl trace ID` shows where the time of a "
            "call went, and the HTTP gateway sends traces to a collector (`otlp_endpoint` in "
            "[gateway]).",
        )

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Any
    ) -> pb.SystemSharedMemoryStatusResponse:
        """List the caller's regions."""
        found = self._shared().listed(tenant(context), request.name)
        return pb.SystemSharedMemoryStatusResponse(regions=found)

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Any
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Name a part of a buffer."""
        await self._shared().register(tenant(context), request)
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Any
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Forget a region, or all."""
        self._shared().unregister(tenant(context), request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def _shared(self) -> Regions:
        if self._regions is None:
            raise Unavailable("NO_MEMORY", "There is no memory server to keep regions in.")
        return self._regions

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Any
    ) -> pb.RepositoryIndexResponse:
        """List models with their states."""
        _repository(request.repository_name)
        response = pb.RepositoryIndexResponse()
        for row in await self._core.rows():
            if request.ready and row.state is not State.READY:
                continue
            reason = row.reason
            if row.state is State.STORED:
                reason = reason or "not loaded; its first call loads it"
            response.models.add(
                name=row.version.name,
                version=str(row.version.version),
                state=_STATES[row.state],
                reason=reason,
            )
        return response

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Any
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model."""
        _repository(request.repository_name)
        _parameters(request.parameters)
        await self._core.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Any
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload a model."""
        _repository(request.repository_name)
        _parameters(request.parameters, "unload_dependents")
        await self._core.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()


def _ref(name: str, version: str) -> Ref:
    ref = Ref.parse(name)
    asked = Ref.parse(f"{ref.name}@{version}").version if version else ref.version
    if (ref.version or (ref.alias and version)) and asked != ref.version:
        raise InvalidArgument(
            "BAD_NAME",
            f"Model name {name!r} has a version and another one, {version!r}, is asked; leave one "
            "out.",
        )
    return Ref(ref.name, asked, ref.alias)


def _repository(name: str) -> None:
    if name:
        raise NotFound(
            "NO_SUCH_REPOSITORY",
            f"There is no repository {name[:60]!r}; the only one has the empty name.",
        )


def _parameters(given: Any, *known: str) -> None:
    for name in given:
        if name not in known:
            raise InvalidArgument(
                "BAD_PARAMETER",
                f"Parameter {name[:60]!r} is not known; a model's configuration and files come "
                "from storage only.",
            )
