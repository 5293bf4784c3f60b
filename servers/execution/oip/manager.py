"""The manager's side of the Open Inference Protocol: the server and its model repository."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as installed_version
from typing import Any, Protocol

from llmos.api.inference import open_inference_pb2 as pb
from llmos.lib.errors import InvalidArgument, NotFound, Unavailable
from llmos.servers.execution.manager.listing import Row
from llmos.servers.execution.manager.model import Ref, State
from llmos.servers.execution.oip.base import Refusing

_EXTENSIONS = ("model_repository", "model_repository(unload_dependents)")
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

    def __init__(self, core: Models) -> None:
        """Answer from `core`."""
        self._core = core

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
    if ref.version and asked != ref.version:
        raise InvalidArgument(
            "BAD_NAME",
            f"Model name {name!r} has a version and another one, {version!r}, is asked; leave one "
            "out.",
        )
    return Ref(ref.name, asked)


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
