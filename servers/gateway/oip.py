"""/v2: the Open Inference Protocol over HTTP, with Triton's extensions; Triton's own clients."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llmos.api.inference import open_inference_pb2 as pb
from llmos.lib.errors import InvalidArgument, LLMOSError
from llmos.lib.rpc import from_rpc_error
from llmos.lib.values import as_value, from_value
from llmos.servers.gateway import body, calls, oip_infer, trace
from llmos.servers.gateway.config import GatewayConfig
from llmos.servers.gateway.schema import object_of
from llmos.servers.gateway.stream import unless_gone

_SERVICE = "inference.GRPCInferenceService"
_QUICK_S, _LOAD_S = 15.0, 600.0
_REFERENCE = re.compile(r"[A-Za-z0-9._@-]{1,160}")
Work = Callable[[Request], Any]


class OpenInference:
    """The endpoints; each is a call of the protocol's gRPC service behind the kernel."""

    def __init__(self, channel: Callable[[], grpc.aio.Channel], config: GatewayConfig) -> None:
        """Call over `channel`, which is asked for at each call."""
        self._channel, self._config = channel, config

    def routes(self) -> list[Route]:
        """Return the routes under /v2."""
        model = "/v2/models/{name}"
        version = model + "/versions/{version}"
        region = "/v2/systemsharedmemory"
        gets: list[tuple[str, Work]] = [
            ("/v2", self.server),
            ("/v2/health/live", self.live),
            ("/v2/health/ready", self.ready),
            ("/v2/models/stats", self.statistics),
            (region + "/status", self.regions),
            (region + "/region/{name}/status", self.regions),
            ("/v2/cudasharedmemory/status", self.no_regions),
        ]
        posts: list[tuple[str, Work]] = [
            ("/v2/repository/index", self.index),
            ("/v2/repository/models/{name}/load", self.load),
            ("/v2/repository/models/{name}/unload", self.unload),
            (region + "/region/{name}/register", self.register),
            (region + "/region/{name}/unregister", self.unregister),
            (region + "/unregister", self.unregister),
            ("/v2/cudasharedmemory/unregister", self.nothing),
        ]
        for prefix in (model, version):
            gets += [
                (prefix, self.metadata),
                (prefix + "/ready", self.model_ready),
                (prefix + "/config", self.model_config),
                (prefix + "/stats", self.statistics),
            ]
            posts.append((prefix + "/infer", self.infer))
        return [
            *(Route(path, work, methods=["GET"]) for path, work in gets),
            *(Route(path, work, methods=["POST"]) for path, work in posts),
        ]

    async def server(self, request: Request) -> Response:
        """Say what this is."""
        return _json(await self._call(request, pb.ServerMetadataRequest()))

    async def live(self, request: Request) -> Response:
        """Say that the process is alive."""
        return Response()

    async def ready(self, request: Request) -> Response:
        """Say whether models can be asked."""
        try:
            answer = await self._call(request, pb.ServerReadyRequest())
        except LLMOSError:
            return Response(status_code=503)
        return Response(status_code=200 if answer.ready else 503)

    async def model_ready(self, request: Request) -> Response:
        """Say whether a model is loaded."""
        answer = await self._call(request, pb.ModelReadyRequest(**request.path_params))
        return Response(status_code=200 if answer.ready else 400)

    async def metadata(self, request: Request) -> Response:
        """List a model's tensors."""
        message = pb.ModelMetadataRequest(**request.path_params)
        return _json(await self._call(request, message, _LOAD_S))

    async def model_config(self, request: Request) -> Response:
        """Tell how a model is run."""
        message = pb.ModelConfigRequest(**request.path_params)
        config = as_value((await self._call(request, message, _LOAD_S)).config)
        for tensor in (*config["input"], *config["output"]):
            tensor["data_type"] = tensor["data_type"].upper()  # as Triton writes them
        return JSONResponse(config)

    async def statistics(self, request: Request) -> Response:
        """Tell what models have done."""
        return _json(await self._call(request, pb.ModelStatisticsRequest(**request.path_params)))

    async def index(self, request: Request) -> Response:
        """List the models."""
        members = object_of(await self._read(request) or b"{}")
        asked = from_value(pb.RepositoryIndexRequest, members)
        answer = await self._call(request, asked)
        return JSONResponse([as_value(model) for model in answer.models])

    async def load(self, request: Request) -> Response:
        """Load a model."""
        members = object_of(await self._read(request) or b"{}")
        if members.get("parameters"):
            raise InvalidArgument(
                "BAD_PARAMETER", "Loading takes no parameters here; leave them out."
            )
        name = request.path_params["name"]
        await self._call(request, pb.RepositoryModelLoadRequest(model_name=name), _LOAD_S)
        return Response()

    async def unload(self, request: Request) -> Response:
        """End a model's worker."""
        await self._read(request)
        name = request.path_params["name"]
        await self._call(request, pb.RepositoryModelUnloadRequest(model_name=name), _LOAD_S)
        return Response()

    async def regions(self, request: Request) -> Response:
        """List the regions of shared memory."""
        message = pb.SystemSharedMemoryStatusRequest(**request.path_params)
        answer = await self._call(request, message)
        return JSONResponse([as_value(region) for region in answer.regions.values()])

    async def no_regions(self, request: Request) -> Response:
        """List no regions of GPU memory: clients cannot register any."""
        return JSONResponse([])

    async def nothing(self, request: Request) -> Response:
        """Forget nothing, which is all there is."""
        return Response()

    async def register(self, request: Request) -> Response:
        """Register a region."""
        members = object_of(await self._read(request)) | request.path_params
        await self._call(request, from_value(pb.SystemSharedMemoryRegisterRequest, members))
        return Response()

    async def unregister(self, request: Request) -> Response:
        """Forget a region, or all."""
        await self._read(request)
        await self._call(request, pb.SystemSharedMemoryUnregisterRequest(**request.path_params))
        return Response()

    async def infer(self, request: Request) -> Response:
        """Run a model on tensors."""
        raw = await self._read(request)
        header = request.headers.get("inference-header-content-length")
        asked, binary = await asyncio.to_thread(oip_infer.parse, raw, header)
        name, version = request.path_params["name"], request.path_params.get("version", "")
        message = await asyncio.to_thread(oip_infer.to_message, name, version, asked, binary)
        trace.of(request.scope).model = ""
        work = self._call(request, message, self._config.request_timeout_s)
        answer = await unless_gone(request.receive, work)
        trace.of(request.scope).model = f"{name.partition('@')[0]}@{answer.model_version}"
        content, length = await asyncio.to_thread(oip_infer.to_body, answer, asked)
        if length is None:
            return Response(content, media_type="application/json")
        headers = {"inference-header-content-length": str(length)}
        return Response(content, headers=headers, media_type="application/octet-stream")

    async def _read(self, request: Request) -> bytes:
        return await body.read(request, self._config.max_body_bytes, self._config.body_timeout_s)

    async def _call(self, request: Request, message: Message, timeout_s: float = _QUICK_S) -> Any:
        metadata = calls.of(request, timeout_s).metadata
        name = getattr(message, "model_name", "") or getattr(message, "name", "")
        method = message.DESCRIPTOR.name.removesuffix("Request")
        # A version of its own is a key of its own, and nobody has to pass the call on.
        version = getattr(message, "model_version", "") or getattr(message, "version", "")
        key = f"{name}@{version}" if version else name
        if method in ("ModelInfer", "ModelMetadata", "ModelConfig") and _REFERENCE.fullmatch(key):
            metadata = (*metadata, ("llmos-key", key))
        answer = getattr(pb, f"{method}Response")
        rpc = self._channel().unary_unary(
            f"/{_SERVICE}/{method}", type(message).SerializeToString, answer.FromString
        )
        try:
            with trace.of(request.scope).calling():
                return await rpc(message, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from None


def _json(message: Message) -> JSONResponse:
    return JSONResponse(as_value(message))
