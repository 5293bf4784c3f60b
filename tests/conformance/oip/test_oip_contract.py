"""The Open Inference Protocol's servicers, called in process and over gRPC."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from model_files import tiny_onnx
from tiny_text import DIM, text_files, text_onnx

from llmos.api.inference import open_inference_pb2 as pb
from llmos.api.inference import open_inference_pb2_grpc
from llmos.lib import log as logs
from llmos.lib.errors import LLMOSError, NotFound, Unavailable, Unimplemented
from llmos.lib.rpc import ErrorInterceptor, from_exception
from llmos.servers.execution.engine import onnx as engine_onnx
from llmos.servers.execution.engine.base import Engine, ModelSpec
from llmos.servers.execution.manager.listing import Row
from llmos.servers.execution.manager.model import Ref, State, Version
from llmos.servers.execution.oip.manager import ManagerInference
from llmos.servers.execution.oip.worker import WorkerInference


class InProcess:
    """Calls a servicer as gRPC would, without it."""

    class Context:
        def time_remaining(self) -> None:
            return None

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer

    def __getattr__(self, name: str) -> Any:
        async def call(request: Any) -> Any:
            return await getattr(self._servicer, name)(request, self.Context())

        return call


class Repository:
    """Three versions of one model; behaves as the manager's core."""

    def __init__(self) -> None:
        self.states = {1: State.STORED, 2: State.READY, 3: State.FAILED}
        self.storage = True

    async def rows(self) -> Sequence[Row]:
        if not self.storage:
            raise Unavailable("NOT_SENT", "storage is not there.")
        return [
            Row(
                version=Version("m", number),
                worker=None,
                state=state,
                reason="it crashed" if state is State.FAILED else "",
                is_default=number == 2,
            )
            for number, state in self.states.items()
        ]

    def _version(self, text: str) -> int:
        ref = Ref.parse(text)
        if ref.name != "m":
            raise NotFound("NO_SUCH_MODEL", f"There is no model {ref.name}.")
        return ref.version or 2

    async def load(self, ref: str) -> object:
        self.states[self._version(ref)] = State.READY
        return None

    async def unload(self, ref: str) -> object:
        self.states[self._version(ref)] = State.STORED
        return None


@pytest.fixture(params=["in process", "gRPC"])
async def connect(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    servers: list[grpc.aio.Server] = []
    channels: list[grpc.aio.Channel] = []

    async def connect(servicer: Any) -> Any:
        if request.param == "in process":
            return InProcess(servicer)
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        address = f"unix:{tmp_path}/{len(servers)}"
        server.add_insecure_port(address)
        await server.start()
        servers.append(server)
        channels.append(grpc.aio.insecure_channel(address))
        return open_inference_pb2_grpc.GRPCInferenceServiceStub(channels[-1])

    yield connect
    for channel in channels:
        await channel.close()
    for server in servers:
        await server.stop(0)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tiny_onnx(tmp_path_factory.mktemp("matrix") / "m.onnx")
    engine = engine_onnx.load(ModelSpec("m@2", "onnx", "predict", {"m.onnx": path}, threads=1))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("encoder")
    files = {"model.onnx": text_onnx(folder / "model.onnx"), **text_files(folder)}
    engine = engine_onnx.load(ModelSpec("e@1", "onnx", "embed", files, threads=1))
    yield engine
    engine.close()


async def fails(call: Any, error: type[LLMOSError], reason: str) -> str:
    with pytest.raises((LLMOSError, grpc.RpcError)) as caught:
        await call
    found = from_exception(caught.value)
    assert (type(found), found.reason) == (error, reason)
    return found.message


def ones(model: str = "m", version: str = "", rows: int = 1) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, model_version=version, id="7")
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 32])
    request.raw_input_contents.append(np.ones((rows, 32), np.float32).tobytes())
    return request


def text(*texts: str, shape: Sequence[int] = ()) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="e")
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=shape or [len(texts)])
    tensor.contents.bytes_contents.extend(t.encode() for t in texts)
    return request


async def test_metadata_lists_the_models_own_tensors(connect: Any, encoder: Engine) -> None:
    stub = await connect(WorkerInference(encoder, "e@1"))
    answer = await stub.ModelMetadata(pb.ModelMetadataRequest(name="e"))
    assert (answer.name, list(answer.versions)) == ("e", ["1"])
    assert answer.platform == "onnxruntime_onnx"
    inputs = [(t.name, t.datatype, list(t.shape)) for t in answer.inputs]
    assert inputs == [("input_ids", "INT64", [-1, -1]), ("attention_mask", "INT64", [-1, -1])]
    (output,) = answer.outputs
    assert (output.name, output.datatype) == ("last_hidden_state", "FP32")
    assert list(output.shape) == [-1, -1, DIM]


async def test_infers_from_raw_and_typed_contents(connect: Any, matrix: Engine) -> None:
    stub = await connect(WorkerInference(matrix, "m@2"))
    raw = await stub.ModelInfer(ones(rows=3))
    typed = pb.ModelInferRequest(model_name="m@2", model_version="2")
    tensor = typed.inputs.add(name="x", datatype="FP32", shape=[3, 32])
    tensor.contents.fp32_contents.extend([1.0] * 96)
    typed.outputs.add(name="y")
    again = await stub.ModelInfer(typed)
    assert (raw.model_name, raw.model_version, raw.id) == ("m", "2", "7")
    assert again.model_name == "m@2"
    (output,) = raw.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [3, 8])
    assert raw.raw_output_contents == again.raw_output_contents
    assert len(raw.raw_output_contents[0]) == 3 * 8 * 4


async def test_texts_give_embeddings(connect: Any, encoder: Engine) -> None:
    stub = await connect(WorkerInference(encoder, "e@1"))
    expected = (await encoder.embed(["one", "zwölf"])).vectors
    for shape in ([2], [2, 1]):
        answer = await stub.ModelInfer(text("one", "zwölf", shape=shape))
        (output,) = answer.outputs
        assert (output.name, list(output.shape)) == ("embedding", [2, DIM])
        got = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, DIM)
        np.testing.assert_allclose(got, expected, atol=1e-6)


async def test_bad_texts(connect: Any, encoder: Engine) -> None:
    stub = await connect(WorkerInference(encoder, "e@1"))
    await fails(stub.ModelInfer(text(shape=[0])), *refused("EMPTY_INPUT"))
    await fails(stub.ModelInfer(text("a", "b", shape=[1, 2])), *refused("BAD_TENSOR"))
    wanted = text("a")
    wanted.outputs.add(name="last_hidden_state")
    await fails(stub.ModelInfer(wanted), *refused("BAD_TENSOR"))
    crowded = text("a")
    crowded.inputs.add(name="input_ids", datatype="INT64", shape=[1, 1]).contents.CopyFrom(
        pb.InferTensorContents(int64_contents=[1])
    )
    await fails(stub.ModelInfer(crowded), *refused("BAD_TENSOR"))
    bad = text("a")
    bad.inputs[0].contents.bytes_contents[0] = b"\xff"
    await fails(stub.ModelInfer(bad), *refused("BAD_TENSOR"))


def refused(reason: str) -> tuple[type[LLMOSError], str]:
    from llmos.lib.errors import InvalidArgument

    return InvalidArgument, reason


async def test_bad_tensors_and_parameters(connect: Any, matrix: Engine) -> None:
    stub = await connect(WorkerInference(matrix, "m@2"))
    request = ones()
    request.inputs[0].name = "q"
    message = await fails(stub.ModelInfer(request), *refused("BAD_TENSOR"))
    assert "'q'" in message and "'x' (float32 of shape [-1, 32]" in message
    request = ones()
    request.inputs[0].datatype = "FP64"
    assert "expected FP32" in await fails(stub.ModelInfer(request), *refused("BAD_TENSOR"))
    request = ones()
    request.parameters["sequence_id"].int64_param = 1
    await fails(stub.ModelInfer(request), *refused("NO_SEQUENCES"))


async def test_another_version_is_asked_by_its_own_name(connect: Any, matrix: Engine) -> None:
    stub = await connect(WorkerInference(matrix, "m@2"))
    message = await fails(stub.ModelInfer(ones(version="1")), NotFound, "NO_SUCH_VERSION")
    assert "'m@1'" in message
    asked = pb.ModelMetadataRequest(name="m", version="3")
    await fails(stub.ModelMetadata(asked), NotFound, "NO_SUCH_VERSION")
    await fails(stub.ModelInfer(ones("m@2", "1")), *refused("BAD_NAME"))


async def test_another_version_is_forwarded_over_a_channel(
    connect: Any, matrix: Engine, tmp_path: Path
) -> None:
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    other = WorkerInference(matrix, "m@1")
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(other, server)
    server.add_insecure_port(f"unix:{tmp_path}/other")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/other") as channel:
        stub = await connect(WorkerInference(matrix, "m@2", channel))
        answer = await stub.ModelInfer(ones(version="1"))
        assert (answer.model_name, answer.model_version) == ("m", "1")
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="m", version="1"))
        assert (metadata.name, list(metadata.versions)) == ("m", ["1"])
        await fails(stub.ModelInfer(ones(version="9")), NotFound, "NO_SUCH_VERSION")
    await server.stop(0)


async def test_workers_and_manager_refuse_each_others_methods(connect: Any, matrix: Engine) -> None:
    worker = await connect(WorkerInference(matrix, "m@2"))
    manager = await connect(ManagerInference(Repository()))
    for call in (
        worker.ServerLive(pb.ServerLiveRequest()),
        worker.RepositoryIndex(pb.RepositoryIndexRequest()),
        manager.ModelInfer(ones()),
        manager.ModelMetadata(pb.ModelMetadataRequest(name="m")),
    ):
        await fails(call, Unimplemented, "WRONG_SERVER")


async def test_server(connect: Any) -> None:
    repository = Repository()
    stub = await connect(ManagerInference(repository))
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    metadata = await stub.ServerMetadata(pb.ServerMetadataRequest())
    assert metadata.name == "llmos" and "model_repository" in metadata.extensions
    repository.storage = False
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("m", "", True),
        ("m", "2", True),
        ("m@2", "", True),
        ("m", "1", False),
        ("x", "", False),
    ],
)
async def test_model_ready(connect: Any, name: str, version: str, ready: bool) -> None:
    stub = await connect(ManagerInference(Repository()))
    answer = await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))
    assert answer.ready is ready


@pytest.mark.parametrize(("name", "version"), [("", ""), ("a b", ""), ("m", "x y"), ("m@1", "2")])
async def test_model_ready_with_bad_names(connect: Any, name: str, version: str) -> None:
    stub = await connect(ManagerInference(Repository()))
    asked = pb.ModelReadyRequest(name=name, version=version)
    await fails(stub.ModelReady(asked), *refused("BAD_NAME"))


@pytest.fixture
def quiet() -> Iterator[None]:
    before, root = logs.shown(), logging.getLogger().level
    logs.show("info")
    yield
    logs.show(before)
    logging.getLogger().setLevel(root)


def setting(name: str, **value: Any) -> pb.LogSettingsRequest:
    request = pb.LogSettingsRequest()
    request.settings[name].CopyFrom(pb.LogSettingsRequest.SettingValue(**value))
    return request


async def test_log_settings(connect: Any, quiet: None) -> None:
    told: list[str] = []

    async def log(level: str) -> None:
        told.append(level)
        logs.show(level)

    stub = await connect(ManagerInference(Repository(), log=log))
    before = (await stub.LogSettings(pb.LogSettingsRequest())).settings
    assert sorted(before) == [
        "log_error",
        "log_file",
        "log_format",
        "log_info",
        "log_verbose_level",
        "log_warning",
    ]
    assert before["log_info"].bool_param and not before["log_verbose_level"].uint32_param
    assert told == []
    after = (await stub.LogSettings(setting("log_warning", bool_param=False))).settings
    assert not after["log_warning"].bool_param and after["log_info"].bool_param
    after = (await stub.LogSettings(setting("log_verbose_level", uint32_param=3))).settings
    assert after["log_verbose_level"].uint32_param == 1
    await stub.LogSettings(setting("log_format", string_param="ISO8601"))
    assert told == ["info,error", "debug,info,error", "debug,info,error"]
    for bad in (
        setting("log_info", uint32_param=1),
        setting("log_info"),
        setting("log_verbose_level", bool_param=True),
        setting("log_format", string_param="default"),
        setting("nope", bool_param=True),
    ):
        await fails(stub.LogSettings(bad), *refused("BAD_SETTING"))
    moved = setting("log_file", string_param="/tmp/elsewhere")
    moved.settings["log_info"].bool_param = False
    await fails(stub.LogSettings(moved), Unimplemented, "FIXED_SETTING")
    assert len(told) == 3  # a request with a wrong setting changes nothing
    metadata = await stub.ServerMetadata(pb.ServerMetadataRequest())
    assert "logging" in metadata.extensions and "trace" not in metadata.extensions
    message = await fails(stub.TraceSetting(pb.TraceSettingRequest()), Unimplemented, "NO_TRACE")
    assert "llmos-ctl trace" in message


async def test_repository(connect: Any) -> None:
    stub = await connect(ManagerInference(Repository()))
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
    assert [(m.name, m.version, m.state, m.reason) for m in index.models] == [
        ("m", "1", "UNAVAILABLE", "not loaded; its first call loads it"),
        ("m", "2", "READY", ""),
        ("m", "3", "UNAVAILABLE", "it crashed"),
    ]
    await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="m@1"))
    unload = pb.RepositoryModelUnloadRequest(model_name="m@2")
    unload.parameters["unload_dependents"].bool_param = False
    await stub.RepositoryModelUnload(unload)
    ready = await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    assert [m.version for m in ready.models] == ["1"]


async def test_repository_errors(connect: Any) -> None:
    stub = await connect(ManagerInference(Repository()))
    load = pb.RepositoryModelLoadRequest(model_name="nope")
    await fails(stub.RepositoryModelLoad(load), NotFound, "NO_SUCH_MODEL")
    load = pb.RepositoryModelLoadRequest(model_name="m")
    load.parameters["config"].string_param = "{}"
    await fails(stub.RepositoryModelLoad(load), *refused("BAD_PARAMETER"))
    index = pb.RepositoryIndexRequest(repository_name="other")
    await fails(stub.RepositoryIndex(index), NotFound, "NO_SUCH_REPOSITORY")
