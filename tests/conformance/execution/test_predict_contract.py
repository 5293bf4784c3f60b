"""Predict, PredictStream and Classify: a worker's servicer in process and over gRPC."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from model_files import tiny_onnx

from llmos.api.execution.v1 import execution_pb2_grpc
from llmos.api.execution.v1 import predict_pb2 as pb
from llmos.lib.errors import (
    FailedPrecondition,
    InvalidArgument,
    LLMOSError,
    ResourceExhausted,
    Unimplemented,
)
from llmos.lib.rpc import ErrorInterceptor, from_exception
from llmos.servers.execution.engine import onnx as engine_onnx
from llmos.servers.execution.engine.base import Engine, ModelSpec
from llmos.servers.execution.worker.service import WorkerExecution


class InProcess:
    """Calls a servicer as gRPC would, without it."""

    class Context:
        def time_remaining(self) -> None:
            return None

        def peer(self) -> str:
            return "unix:"

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer

    def __getattr__(self, name: str) -> Any:
        return lambda request: getattr(self._servicer, name)(request, self.Context())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "serving.toml").write_text("[batching]\nmax = 4\n")
    files = {"m.onnx": tiny_onnx(folder / "m.onnx"), "serving.toml": folder / "serving.toml"}
    engine = engine_onnx.load(ModelSpec("m@2", "onnx", "predict", files, threads=1))
    yield engine
    engine.close()


@pytest.fixture(params=["in process", "gRPC"])
async def connect(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    servers: list[grpc.aio.Server] = []
    channels: list[grpc.aio.Channel] = []

    async def connect(engine: Engine) -> Any:
        servicer = WorkerExecution(engine, "m@2")
        if request.param == "in process":
            return InProcess(servicer)
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        execution_pb2_grpc.add_ExecutionServicer_to_server(servicer, server)
        address = f"unix:{tmp_path}/{len(servers)}"
        server.add_insecure_port(address)
        await server.start()
        servers.append(server)
        channels.append(grpc.aio.insecure_channel(address))
        return execution_pb2_grpc.ExecutionStub(channels[-1])

    yield connect
    for channel in channels:
        await channel.close()
    for server in servers:
        await server.stop(0)


async def fails(call: Any, error: type[LLMOSError], reason: str) -> str:
    with pytest.raises((LLMOSError, grpc.RpcError)) as caught:
        await call
    found = from_exception(caught.value)
    assert (type(found), found.reason) == (error, reason)
    return found.message


def ones(rows: int = 1, **change: Any) -> pb.PredictRequest:
    data = np.ones((rows, 32), np.float32).tobytes()
    about = {"name": "x", "datatype": "FP32", "shape": [rows, 32], "data": data} | change
    return pb.PredictRequest(model="m", inputs=[pb.Tensor(**about)])


async def test_predicts(connect: Any, engine: Engine) -> None:
    stub = await connect(engine)
    answer = await stub.Predict(ones(3))
    (output,) = answer.outputs
    assert (answer.model, output.name, output.datatype, list(output.shape)) == (
        "m@2",
        "y",
        "FP32",
        [3, 8],
    )
    assert len(output.data) == 3 * 8 * 4
    request = pb.PredictStreamRequest(model="m", request=ones(3))
    (streamed,) = [reply async for reply in stub.PredictStream(request)]
    assert streamed.answer.outputs[0].data == output.data


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "q"}, "takes no tensor 'q'"),
        ({"datatype": "FP64"}, "expected FP32"),
        ({"datatype": "FLOAT"}, "must be one of BOOL"),
        ({"shape": [1, 31]}, "needs 31"),
        ({"shape": [-1, 32]}, "sizes are 0 or more"),
        ({"shape": [4, 8]}, r"shape [4, 8]; expected"),
        ({"data": b"123"}, "has 3 bytes"),
        ({"shape": [1 << 40, 32]}, "needs"),
    ],
)
async def test_bad_tensors(connect: Any, engine: Engine, change: Any, says: str) -> None:
    stub = await connect(engine)
    message = await fails(stub.Predict(ones(**change)), InvalidArgument, "BAD_TENSOR")
    assert says in message
    assert (await stub.Predict(ones())).outputs  # nobody else is harmed


async def test_other_bad_requests(connect: Any, engine: Engine) -> None:
    stub = await connect(engine)
    await fails(stub.Predict(pb.PredictRequest(model="m")), InvalidArgument, "BAD_TENSOR")
    await fails(stub.Predict(ones(5)), InvalidArgument, "BATCH_TOO_LARGE")
    twice = ones()
    twice.inputs.append(twice.inputs[0])
    await fails(stub.Predict(twice), InvalidArgument, "BAD_TENSOR")
    wanted = ones()
    wanted.outputs.append("q")
    await fails(stub.Predict(wanted), InvalidArgument, "BAD_TENSOR")
    sequence = ones()
    sequence.sequence.id = 3
    await fails(stub.Predict(sequence), InvalidArgument, "NO_SEQUENCES")
    shared = ones()
    shared.inputs[0].buffer.size = 128
    await fails(stub.Predict(shared), FailedPrecondition, "NO_MEMORY")


async def test_not_finite_numbers_go_through(connect: Any, engine: Engine) -> None:
    """A model may know what to do with them; they are no error of the request."""
    data = np.full((1, 32), np.nan, np.float32).tobytes()
    answer = await (await connect(engine)).Predict(ones(data=data))
    assert np.isnan(np.frombuffer(answer.outputs[0].data, np.float32)).all()


async def test_classify_needs_labels(connect: Any, engine: Engine) -> None:
    stub = await connect(engine)
    request = pb.ClassifyRequest(model="m", items=[pb.Item(text="a")])
    await fails(stub.Classify(request), FailedPrecondition, "WRONG_TASK")
    await fails(stub.Classify(pb.ClassifyRequest(model="m")), InvalidArgument, "EMPTY_INPUT")
    request = pb.ClassifyRequest(model="m", items=[pb.Item()])
    await fails(stub.Classify(request), InvalidArgument, "EMPTY_INPUT")
    request = pb.ClassifyRequest(model="m", items=[pb.Item(text="a")] * 2049)
    await fails(stub.Classify(request), ResourceExhausted, "TOO_MANY_INPUTS")


async def test_images_are_classified(connect: Any, tmp_path: Path) -> None:
    """A network that is the mean of each colour: the image's colour is its class."""
    cv2 = pytest.importorskip("cv2")
    from onnx import TensorProto, helper
    from tiny_text import save_graph

    nodes = [helper.make_node("ReduceMean", ["x"], ["logits"], axes=[2, 3], keepdims=0)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 8])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    (tmp_path / "serving.toml").write_text(
        "[batching]\nmax = 8\n"
        '[[before]]\nstep = "image"\nsize = [4, 8]\n'
        '[[after]]\nstep = "softmax"\ninput = "logits"\n'
        '[[after]]\nstep = "labels"\nnames = ["red", "green", "blue"]\n'
    )
    files = {
        "model.onnx": save_graph(tmp_path / "model.onnx", nodes, [x], [y]),
        "serving.toml": tmp_path / "serving.toml",
    }
    engine = engine_onnx.load(ModelSpec("m@2", "onnx", "predict", files, threads=1))
    stub = await connect(engine)
    items = []
    for channel, extension in ((2, ".png"), (0, ".jpg"), (1, ".webp")):  # OpenCV's blue is first
        image = np.zeros((20, 30, 3), np.uint8)
        image[..., channel] = 255
        items.append(pb.Item(file=cv2.imencode(extension, image)[1].tobytes()))
    answer = await stub.Classify(pb.ClassifyRequest(model="m", items=items, top=2))
    found = [[label.name for label in c.labels] for c in answer.classifications]
    assert [f[0] for f in found] == ["red", "blue", "green"]
    assert all(len(f) == 2 for f in found) and answer.model == "m@2"
    bad = pb.ClassifyRequest(model="m", items=[*items, pb.Item(file=b"GIF89a no image")])
    message = await fails(stub.Classify(bad), InvalidArgument, "BAD_INPUT")
    assert "no image that can be read" in message
    engine.close()


async def test_a_stream_of_a_model_with_state(connect: Any, tmp_path: Path) -> None:
    from onnx import TensorProto, helper
    from tiny_text import save_graph

    nodes = [
        helper.make_node("ReduceSum", ["x", "axis"], ["part"], keepdims=1),
        helper.make_node("Add", ["part", "sum"], ["total"]),
        helper.make_node("Identity", ["total"], ["next"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k"]),
        helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 1]),
    ]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 1]) for n in ("total", "next")
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    (tmp_path / "serving.toml").write_text(
        '[sequence]\n[[sequence.state]]\ninput = "sum"\noutput = "next"\nshape = [1]\n'
        '[stream]\ninput = "x"\nchunk = 2\n'
    )
    model = save_graph(tmp_path / "model.onnx", nodes, inputs, outputs, [axis])
    files = {"model.onnx": model, "serving.toml": tmp_path / "serving.toml"}
    engine = engine_onnx.load(ModelSpec("m@2", "onnx", "predict", files, threads=1))
    stub = await connect(engine)
    data = np.arange(6, dtype=np.float32).tobytes()
    request = ones(shape=[1, 6], data=data)
    stream = stub.PredictStream(pb.PredictStreamRequest(model="m", request=request))
    found = [np.frombuffer(r.answer.outputs[0].data, np.float32)[0] async for r in stream]
    assert found == [1, 6, 15]
    await fails(stub.Predict(request), Unimplemented, "DECOUPLED")
    engine.close()


def test_the_example_of_the_documentation_is_valid(tmp_path: Path) -> None:
    """Every TOML block of docs/models.md that is a serving.toml parses."""
    import re
    import tomllib

    from llmos.servers.execution.engine.serving import config

    text = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", text, re.S)
    blocks = [b for b in blocks if "[[node]]" not in b and "class =" not in b]  # of other files
    assert len(blocks) >= 4
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        config.read({"serving.toml": file})
    assert json.dumps(tomllib.loads("\n".join(blocks[1:2])))
