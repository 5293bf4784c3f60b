"""Bad requests and bad models while others are served: each is told, and nobody else notices."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from execution_stack import Client, Stack, client, stack
from model_files import tiny_onnx
from safetensors.numpy import load_file, save_file
from tiny_llama import tiny_llama

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1 import predict_pb2
from llmos.lib.rpc import from_rpc_error

PATIENCE_S = 300  # who is refused is told at once, however slow the machine is
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("models")

    async def import_models(found: Stack) -> None:
        async with client(found) as llmos:
            await llmos.import_model(str(tiny_llama(folder / "words")), "words")
            await llmos.import_model(str(tiny_onnx(folder / "numbers.onnx")), "numbers")

    with stack(tmp_path_factory.mktemp("bad"), execution=("--precision", "int8")) as found:
        asyncio.run(import_models(found))
        yield found


@pytest.fixture
async def llmos(running: Stack) -> AsyncIterator[Client]:
    async with client(running) as found:
        yield found


def generation(**changes: Any) -> pb.GenerateRequest:
    request = pb.GenerateRequest(model="words", prompt="once", max_tokens=24)
    request.sampling.temperature = 0
    request.MergeFrom(pb.GenerateRequest(**changes))
    return request


async def tokens_of(llmos: Client, request: pb.GenerateRequest) -> list[int]:
    return [
        token
        async for reply in llmos.execution.Generate(request, timeout=PATIENCE_S)
        for token in reply.token_ids
    ]


@asynccontextmanager
async def neighbours(running: Stack, llmos: Client) -> AsyncIterator[None]:
    """Keep the same model and another one busy; all must answer as ever, and no worker end."""
    request = generation()
    words, numbers = await tokens_of(llmos, request), await llmos.infer("numbers", PATIENCE_S)
    before = {r.name: r.pid for r in running.records("worker/")}
    over = asyncio.Event()
    answers = [0, 0, 0]

    async def talk(number: int) -> None:
        while not over.is_set():
            assert await tokens_of(llmos, request) == words
            answers[number] += 1

    async def count() -> None:
        while not over.is_set():
            np.testing.assert_array_equal(await llmos.infer("numbers", PATIENCE_S), numbers)
            answers[2] += 1

    async with asyncio.TaskGroup() as group:
        for task in (talk(0), talk(1), count()):
            group.create_task(task)
        try:
            yield
        finally:
            over.set()
    assert all(answers), answers
    after = {r.name: r.pid for r in running.records("worker/")}
    assert {name: after.get(name) for name in before} == before


async def refusal(ask: Callable[[], Awaitable[object]]) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask()
    error = from_rpc_error(caught.value)
    assert error.message.endswith(".") and "Traceback" not in error.message
    return caught.value.code().name, error.reason


REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "x" * 300}, "OUT_OF_RANGE CONTEXT_OVERFLOW"),
    ({"max_tokens": 1000}, "OUT_OF_RANGE CONTEXT_OVERFLOW"),
    ({"tokens": pb.TokenIds()}, "INVALID_ARGUMENT EMPTY_PROMPT"),
    ({"tokens": pb.TokenIds(ids=[1, 4_000_000])}, "INVALID_ARGUMENT BAD_TOKENS"),
    ({"chat": pb.Chat()}, "INVALID_ARGUMENT EMPTY_PROMPT"),
    ({"sampling": pb.Sampling(top_p=1.5)}, "INVALID_ARGUMENT BAD_SAMPLING"),
    ({"sampling": pb.Sampling(top_p=0)}, "INVALID_ARGUMENT BAD_SAMPLING"),
    ({"sampling": pb.Sampling(temperature=math.nan)}, "INVALID_ARGUMENT BAD_SAMPLING"),
    ({"sampling": pb.Sampling(temperature=-1)}, "INVALID_ARGUMENT BAD_SAMPLING"),
    ({"sampling": pb.Sampling(logprobs=21)}, "INVALID_ARGUMENT BAD_SAMPLING"),
    ({"speculate": 17}, "INVALID_ARGUMENT BAD_SAMPLING"),
    ({"json_schema": "{"}, "INVALID_ARGUMENT BAD_CONSTRAINT"),
    ({"json_schema": "false"}, "INVALID_ARGUMENT BAD_CONSTRAINT"),
    (
        {"json_schema": '{"type": "integer", "minimum": 5, "maximum": 1}'},
        "INVALID_ARGUMENT BAD_CONSTRAINT",
    ),
    ({"regex": "a(b"}, "INVALID_ARGUMENT BAD_CONSTRAINT"),
]


async def test_bad_prompts_and_settings(running: Stack, llmos: Client) -> None:
    async with neighbours(running, llmos):
        for changes, expected in REQUESTS:
            told = await refusal(lambda c=changes: tokens_of(llmos, generation(**c)))  # type: ignore[misc]
            assert " ".join(told) == expected, changes


async def test_a_prompt_that_is_no_utf8(running: Stack, llmos: Client) -> None:
    call = llmos.channel.unary_stream(
        "/llmos.api.execution.v1.Execution/Generate",
        request_serializer=lambda data: data,
        response_deserializer=lambda data: data,
    )
    raw = generation(prompt="ab").SerializeToString().replace(b"\x02ab", b"\x02\xff\xfe")

    async def ask() -> None:
        async for _ in call(raw, timeout=PATIENCE_S):
            pass

    async with neighbours(running, llmos):
        assert (await refusal(ask))[0] == "INVALID_ARGUMENT"


async def test_bad_tensors(running: Stack, llmos: Client) -> None:
    row = np.ones((1, 32), np.float32)
    bad = [
        predict_pb2.Tensor(name="x", datatype="FP32", shape=[1, 31], data=row.tobytes()[4:]),
        predict_pb2.Tensor(name="x", datatype="FP32", shape=[32], data=row.tobytes()),
        predict_pb2.Tensor(name="x", datatype="INT32", shape=[1, 32], data=row.tobytes()),
        predict_pb2.Tensor(name="x", datatype="FP32", shape=[1, 32], data=row.tobytes()[1:]),
        predict_pb2.Tensor(name="x", datatype="FP32", shape=[1, 32]),
        predict_pb2.Tensor(name="x", datatype="FP32", shape=[-1, -32], data=row.tobytes()),
        predict_pb2.Tensor(name="x", datatype="FP32", shape=[1 << 62, 32], data=row.tobytes()),
        predict_pb2.Tensor(name="x", datatype="NONE", shape=[1, 32], data=row.tobytes()),
        predict_pb2.Tensor(name="z", datatype="FP32", shape=[1, 32], data=row.tobytes()),
    ]
    async with neighbours(running, llmos):
        for tensor in bad:
            request = predict_pb2.PredictRequest(model="numbers", inputs=[tensor])
            told = await refusal(lambda r=request: llmos.execution.Predict(r, timeout=PATIENCE_S))  # type: ignore[misc]
            assert told == ("INVALID_ARGUMENT", "BAD_TENSOR"), tensor


async def test_bad_models(running: Stack, llmos: Client, tmp_path: Path) -> None:
    nan, short = tiny_llama(tmp_path / "nan"), tiny_llama(tmp_path / "short")
    tensors = load_file(nan / "model.safetensors")
    tensors[DOWN] = tensors[DOWN] * np.nan
    save_file(tensors, nan / "model.safetensors", metadata={"format": "pt"})
    wide = tiny_llama(tmp_path / "wide", intermediate_size=128)
    whole = (short / "model.safetensors").read_bytes()
    (short / "model.safetensors").write_bytes(whole[:20_000])
    onnx = tiny_onnx(tmp_path / "cut.onnx")
    onnx.write_bytes(onnx.read_bytes()[:500])
    async with neighbours(running, llmos):
        for source, words in ((nan, "not finite"), (wide, "shape")):
            ref = await llmos.import_model(str(source), source.name)
            with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
                await llmos.load(ref)
            error = from_rpc_error(caught.value)
            assert (caught.value.code().name, error.reason) == ("UNAVAILABLE", "LOAD_FAILED")
        for path in (short, onnx):  # storage reads them before it takes them
            told = await refusal(lambda p=path: llmos.import_model(str(p), "cut"))  # type: ignore[misc]
            assert told[0] == "INVALID_ARGUMENT", told
    assert not {"worker/nan@1", "worker/wide@1"} & {r.name for r in running.records("worker/")}
