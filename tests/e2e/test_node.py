"""A client and a server that are not Python: clients/node against a real kernel."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from echo_execution import EchoModel, EchoService
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_tools import protoc
from kernel_process import KernelProcess
from node_process import CLI, FOLDER, echo_server, require_node, run_node

from llmos.api.execution.v1 import execution_pb2_grpc
from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc, options_pb2
from llmos.lib.config import ServerConfig
from llmos.lib.port import Port
from llmos.lib.rpc import from_rpc_error
from llmos.lib.serve import OPTIONS, Server

pytestmark = pytest.mark.node
PROTO = FOLDER.parents[1] / "proto"
ECHO = "llmos.example.echo.v1.Echo"
BIG = bytes(range(256)) * (3 << 12)  # 3 MiB: far over a frame and a window


class Echo:
    """A client of the echo service, made of what the kernel reflects: its proto was never seen."""

    def __init__(self, channel: Any, pool: descriptor_pool.DescriptorPool) -> None:
        self.method: dict[str, Any] = {}
        self.request: dict[str, Any] = {}
        for method in pool.FindServiceByName(ECHO).methods:
            request = message_factory.GetMessageClass(method.input_type)
            reply = message_factory.GetMessageClass(method.output_type)
            arity = f"{_arity(method.client_streaming)}_{_arity(method.server_streaming)}"
            self.request[method.name] = request
            self.method[method.name] = getattr(channel, arity)(
                f"/{ECHO}/{method.name}",
                request_serializer=request.SerializeToString,
                response_deserializer=reply.FromString,
            )

    def __call__(self, name: str, timeout: float = 20, metadata: Any = None, **fields: Any) -> Any:
        request = self.request[name](**fields)
        return self.method[name](request, timeout=timeout, metadata=metadata)


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


@pytest.fixture(scope="module", autouse=True)
def generated(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What an imported generated stub does: let the port library know which calls may be repeated.

    Before any call, as the library looks at a method once.
    """
    *_, file = _compiled(tmp_path_factory.mktemp("echo"), "llmos/example/echo/v1/echo.proto")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelProcess]:
    require_node()
    process = KernelProcess(tmp_path_factory.mktemp("node"))
    try:
        process.start()
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="module")
def server(kernel: KernelProcess) -> Iterator[int]:
    with echo_server(kernel.address, "node-echo", "", "mine") as process:
        yield process.pid


@pytest.fixture(scope="module")
def pool(kernel: KernelProcess, server: int) -> Iterator[descriptor_pool.DescriptorPool]:
    with grpc.insecure_channel(kernel.address) as channel:
        yield descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))


@pytest.fixture(params=["plain gRPC", "port"])
async def echo(
    request: pytest.FixtureRequest, kernel: KernelProcess, pool: descriptor_pool.DescriptorPool
) -> AsyncIterator[Echo]:
    if request.param == "port":
        port = Port(kernel.address, "test")
        await port.start()
        yield Echo(port.channel, pool)
        await port.stop(0)
    else:
        async with grpc.aio.insecure_channel(kernel.address, options=OPTIONS) as channel:
            yield Echo(channel, pool)


def test_its_own_tests_pass() -> None:
    require_node()
    done = run_node("--test", "test/")
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_descriptors_are_those_of_protoc(tmp_path: Path) -> None:
    require_node()
    services = {
        "llmos/example/echo/v1/echo.proto": ECHO,
        "llmos/api/execution/v1/execution.proto": "llmos.api.execution.v1.Execution",
        "llmos/api/kernel/v1/admin.proto": "llmos.api.kernel.v1.Admin",
        "llmos/api/storage/v1/registry.proto": "llmos.api.storage.v1.Registry",
        "llmos/api/optimizer/v1/jobs.proto": "llmos.api.optimizer.v1.Jobs",
    }
    script = f"""
      import {{ Protos }} from './src/protos.js';
      const out = {{}};
      for (const [file, name] of Object.entries({json.dumps(services)})) {{
        for (const bytes of new Protos([file]).service(name).files()) {{
          out[bytes.toString('base64')] = name;
        }}
      }}
      console.log(JSON.stringify(out));
    """
    done = run_node("--input-type=module", "-e", script)
    assert done.returncode == 0, done.stderr
    expected = {file.name: _comparable(file) for file in _compiled(tmp_path, *services)}
    compared = set()
    for encoded in json.loads(done.stdout):
        file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(encoded))
        if file.name.startswith("llmos/"):
            assert _comparable(file) == expected[file.name]
            compared.add(file.name)
    assert compared == {name for name in expected if name.startswith("llmos/")}


def _compiled(tmp_path: Path, *files: str) -> Iterable[descriptor_pb2.FileDescriptorProto]:
    out = tmp_path / "descriptors"
    folders = PROTO, FOLDER / "proto", Path(protoc.__file__).parent / "_proto"
    paths = [*(f"-I{folder}" for folder in folders), "--include_imports", f"-o{out}"]
    assert protoc.main(["protoc", *paths, *files]) == 0
    return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file


def _comparable(file: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    def strip(message: descriptor_pb2.DescriptorProto) -> None:
        for field in message.field:
            field.ClearField("json_name")  # follows from the name
        for nested in message.nested_type:
            strip(nested)

    for message in file.message_type:
        strip(message)
    for extension in file.extension:
        extension.ClearField("json_name")
    return file


async def test_python_calls_it(echo: Echo, server: int) -> None:
    reply = await echo("Echo", key="mine", text="grüezi", metadata=[("who", "me")], timeout=9)
    assert reply.text == "grüezi"
    context = reply.context
    assert (context.server, context.pid, context.key) == ("node-echo", server, "mine")
    assert (context.tenant, context.attempt) == ("local", 0)
    assert 0 < context.remaining_ms <= 9000
    assert context.metadata["who"] == "me"


async def test_large_messages_both_ways(echo: Echo) -> None:
    assert (await echo("Echo", payload=BIG)).payload == BIG
    replies = [r async for r in echo("EchoStream", payload=BIG, count=3)]
    assert [(r.index, r.payload == BIG) for r in replies] == [(0, True), (1, True), (2, True)]


async def test_streams_of_requests(echo: Echo) -> None:
    make = echo.request["Collect"]
    collected = await echo.method["Collect"](iter([make(text="a"), make(text="b", payload=BIG)]))
    assert (collected.text, collected.count) == ("ab", 2)
    assert collected.payload_bytes == len(BIG)
    call = echo.method["Converse"]()
    for text in ("one", "two"):  # each answer comes before the next request goes
        await call.write(echo.request["Converse"](text=text))
        assert (await call.read()).text == text
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_its_errors_keep_code_reason_and_message(echo: Echo) -> None:
    for fields, code, reason in (
        ({"fail_code": 9}, 9, "ECHO_ASKED"),
        ({"fail_code": 99}, 3, "BAD_CODE"),
        ({"key": "nobody's"}, 5, "NO_SUCH_KEY"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo("Echo", **fields)
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (code, reason)
        assert error.message.endswith(".")
    texts = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for reply in echo("EchoStream", text="x", count=2, fail_code=5):
            texts.append(reply.text)
    assert (texts, from_rpc_error(caught.value).reason) == (["x", "x"], "ECHO_ASKED")


async def test_deadline_and_cancellation_stop_the_work(echo: Echo, kernel: KernelProcess) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await echo("Echo", delay_ms=60_000, timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    call = echo("EchoStream", count=60_000, interval_ms=5)
    assert (await call.read()).index == 0
    call.cancel()
    async with grpc.aio.insecure_channel(kernel.address) as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        for _ in range(200):
            ports = (await admin.ListPorts(admin_pb2.ListPortsRequest())).ports
            (port,) = [p for p in ports if p.name == "node-echo"]
            if not port.running:
                return
            await asyncio.sleep(0.02)
    pytest.fail(f"{port.running} calls still run in node")


async def test_many_calls_at_once(echo: Echo) -> None:
    texts = [f"t{i}" for i in range(300)]
    replies = await asyncio.gather(*(echo("Echo", text=text) for text in texts))
    assert [reply.text for reply in replies] == texts


async def test_the_kernel_knows_it(kernel: KernelProcess, server: int, pool: Any) -> None:
    async with grpc.aio.insecure_channel(kernel.address) as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        ports = (await admin.ListPorts(admin_pb2.ListPortsRequest())).ports
        (port,) = [p for p in ports if p.name == "node-echo"]
        assert port.pid == server
        (export,) = port.exports
        assert (export.service, sorted(export.keys)) == (ECHO, ["", "mine"])
    service = pool.FindServiceByName(ECHO)
    options = descriptor_pb2.MethodOptions.FromString(
        service.methods_by_name["Echo"].GetOptions().SerializeToString()
    )
    assert options.idempotency_level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    assert options.Extensions[options_pb2.route].field == 1


async def test_a_stream_survives_its_server(echo: Echo, kernel: KernelProcess) -> None:
    address = kernel.address
    with echo_server(address, "a", "pair") as first, echo_server(address, "b", "pair") as second:
        got = []
        async for reply in echo("EchoStream", key="pair", count=60, interval_ms=20):
            got.append(reply)
            if reply.index == 10:
                (first if reply.pid == first.pid else second).kill()
    assert [reply.index for reply in got] == list(range(60))
    assert {reply.pid for reply in got} == {first.pid, second.pid}


async def test_it_survives_the_kernel(tmp_path: Path) -> None:
    kernel = KernelProcess(tmp_path)
    port = Port(kernel.address, "test")
    try:
        kernel.start()
        with echo_server(kernel.address, "node-echo") as process:
            await port.start()
            echo = Echo(port.channel, descriptor_pool.Default())
            indices = []
            async for reply in echo("EchoStream", count=60, interval_ms=20):
                indices.append(reply.index)
                if reply.index == 10:
                    kernel.kill()
                    kernel.start()
            assert indices == list(range(60))
            assert (await echo("Echo", text="again")).context.pid == process.pid
    finally:
        await port.stop(0)
        kernel.stop()


def test_it_drains_when_it_is_told_to_stop(kernel: KernelProcess, pool: Any) -> None:
    with echo_server(kernel.address, "leaving", "leaving") as process:
        with grpc.insecure_channel(kernel.address) as channel:
            echo = Echo(channel, pool)
            request = echo.request["Echo"](key="leaving", text="last", delay_ms=300)
            running = echo.method["Echo"].future(request, timeout=20)
            process.terminate()
            assert running.result().text == "last"
        assert process.wait(10) == 0


@pytest.fixture
async def model(kernel: KernelProcess, tmp_path: Path) -> AsyncIterator[EchoModel]:
    """The Execution service with models that say again what they are told."""
    model = EchoModel()
    config = ServerConfig(state_dir=tmp_path, kernel=kernel.address)
    server = Server("execution", config, listen=False)
    names = ["", "echo", "endless", "nope"]
    add = execution_pb2_grpc.add_ExecutionServicer_to_server
    server.add(add, EchoService(model), keys=names)
    await server.start()
    yield model
    await server.stop(0)


async def cli(kernel: KernelProcess, *args: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(run_node, CLI, *args, address=kernel.address)
    return done.returncode, done.stdout, done.stderr


async def test_it_lists_models(kernel: KernelProcess, model: EchoModel) -> None:
    code, out, err = await cli(kernel, "models")
    assert (code, err) == (0, "")
    assert "echo@2\tready\tgenerate\techo" in out.splitlines()


async def test_it_streams_a_generation(kernel: KernelProcess, model: EchoModel) -> None:
    code, out, err = await cli(kernel, "generate", "echo", "say this again", "--timeout", "9")
    assert (code, out) == (0, "say this again\n")
    assert err == "3 + 3 tokens\n"
    assert model.remaining_s is not None
    assert 0 < model.remaining_s <= 9


async def test_its_user_sees_one_sentence(kernel: KernelProcess, model: EchoModel) -> None:
    code, out, err = await cli(kernel, "generate", "nope", "hi")
    assert (code, out) == (1, "")
    assert err.startswith("llmos-node: NOT_FOUND NO_SUCH_MODEL: There is no model")
    assert err.count("\n") == 1
    code, _, err = await cli(kernel, "generate", "endless", "hi", "--timeout", "0.3")
    assert code == 1
    assert err.startswith("llmos-node: DEADLINE_EXCEEDED")
    code, _, err = await cli(kernel, "generate", "endless")
    assert (code, err.splitlines()[0]) == (2, "llmos-node: generate takes 2 arguments.")
    nowhere = await asyncio.to_thread(run_node, CLI, "models", address="unix:/nowhere/k.sock")
    assert nowhere.returncode == 1
    assert nowhere.stderr.startswith("llmos-node: UNAVAILABLE KERNEL_UNREACHABLE: No kernel")


LEAVE = """
  import { Client, Port, Protos } from './src/client.js';
  const execution = new Protos(['llmos/api/execution/v1/execution.proto'])
    .service('llmos.api.execution.v1.Execution');
  const request = { model: 'endless', prompt: 'on and on' };
  const client = new Client();
  const port = new Port(process.env.LLMOS_ADDRESS, 'leaver');
  await port.start();
  for (const stream of [client.generate(request), port.client(execution).Generate(request)]) {
    let count = 0;
    for await (const piece of stream) if ((count += 1) === 5) break;
    console.log(count);
  }
  const { models } = await port.client(execution).ListModels({});
  console.log(models.length);
  client.close();
  await port.stop();
"""


async def test_leaving_a_stream_stops_the_work(kernel: KernelProcess, model: EchoModel) -> None:
    done = await asyncio.to_thread(
        run_node, "--input-type=module", "-e", LEAVE, address=kernel.address
    )
    assert (done.returncode, done.stdout) == (0, f"5\n5\n{len(await model.list_models())}\n")
    for _ in range(100):
        if model.cancelled == 2 and not model.running:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"{model.running} generations still run, {model.cancelled} were cancelled")
