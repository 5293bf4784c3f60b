"""Models that bring code, through kernel, storage and execution: neighbours under load go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from execution_stack import Client, Stack, client, stack
from model_files import tiny_onnx
from python_models import unruly

from llmos.api.execution.v1 import predict_pb2 as pb
from llmos.lib.rpc import from_rpc_error


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    flags = ("--python-models", "true")
    with stack(tmp_path_factory.mktemp("python"), execution=flags) as running:
        yield running


@pytest.fixture
async def llmos(running: Stack) -> AsyncIterator[Client]:
    async with client(running) as client_:
        yield client_


def request(model: str, number: float) -> pb.PredictRequest:
    x = np.array([[number, 0, 0, 0]], np.float32)
    tensor = pb.Tensor(name="x", datatype="FP32", shape=x.shape, data=x.tobytes())
    return pb.PredictRequest(model=model, inputs=[tensor])


async def ask(llmos: Client, model: str, number: float) -> float:
    answer = await llmos.execution.Predict(request(model, number), timeout=60)
    found = {t.name: t for t in answer.outputs}
    return float(np.frombuffer(found["y"].data, np.float32)[0])


async def refused(llmos: Client, model: str, number: float) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(llmos, model, number)
    return caught.value.code().name, from_rpc_error(caught.value).reason


async def test_unruly_models_harm_nobody_under_load(
    running: Stack, llmos: Client, tmp_path: Path
) -> None:
    await llmos.import_model(str(unruly(tmp_path / "bad")), "bad")
    await llmos.import_model(str(unruly(tmp_path / "good")), "good")
    await llmos.import_model(str(tiny_onnx(tmp_path / "tiny.onnx")), "tiny")
    expected = await llmos.infer("tiny")
    assert await ask(llmos, "good", 1) == 2
    assert await ask(llmos, "bad", 1) == 2
    before = {r.name: r.pid for r in running.records("worker/")}
    over = asyncio.Event()
    answers = [0, 0, 0]

    async def neighbour(number: int, model: str) -> None:
        while not over.is_set():
            assert await ask(llmos, model, number) == number + 1
            answers[number] += 1

    async def other() -> None:
        while not over.is_set():
            np.testing.assert_array_equal(await llmos.infer("tiny"), expected)
            answers[0] += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(other())
        group.create_task(neighbour(1, "good"))
        group.create_task(neighbour(2, "bad"))  # calls of the very model that misbehaves
        for number, told in {
            101: ("INTERNAL", "MODEL_CRASHED"),
            102: ("RESOURCE_EXHAUSTED", "MODEL_MEMORY"),
            103: ("DEADLINE_EXCEEDED", "MODEL_HUNG"),
            104: ("INTERNAL", "BAD_OUTPUT"),
            105: ("INVALID_ARGUMENT", "BAD_INPUT"),
        }.items():
            assert await refused(llmos, "bad", number) == told
        over.set()
    assert all(answers), answers
    assert {r.name: r.pid for r in running.records("worker/")} == before
    assert await llmos.unload("bad")
    assert await llmos.unload("good")


async def test_code_runs_only_where_it_is_allowed(tmp_path: Path) -> None:
    with stack(tmp_path / "state") as running:
        async with client(running) as llmos:
            await llmos.import_model(str(unruly(tmp_path / "m")), "m")
            assert await refused(llmos, "m", 1) == ("FAILED_PRECONDITION", "CODE_NOT_ALLOWED")


async def test_a_pickle_beside_the_code_is_refused(
    running: Stack, llmos: Client, tmp_path: Path
) -> None:
    folder = unruly(tmp_path / "m")
    (folder / "weights.bin").write_bytes(b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00K\x01.")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await llmos.import_model(str(folder), "pickled")
    assert from_rpc_error(caught.value).reason == "PICKLE_REFUSED"
