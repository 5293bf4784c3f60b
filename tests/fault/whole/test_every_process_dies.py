"""kill -9 of each process while a client asks in a loop: nothing is lost, all is whole again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import httpx
import pytest
from whole_os import WholeOS

from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc
from llmos.lib.port import Port

REQUEST = execution_pb2.GenerateRequest(
    model="smollm2",
    prompt="Count: one two three",
    max_tokens=12,
    sampling=execution_pb2.Sampling(temperature=0.8, seed=7),
)


class Asker:
    """Asks over a port again and again, and keeps what came back."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.failures: list[grpc.aio.AioRpcError] = []
        self.longest_s = 0.0

    async def ask(self, stub: execution_pb2_grpc.ExecutionAsyncStub) -> None:
        while True:
            started = time.monotonic()
            try:
                call = stub.Generate(REQUEST, timeout=60)
                self.answers.append("".join([piece.text async for piece in call]))
            except grpc.aio.AioRpcError as exc:
                self.failures.append(exc)
            self.longest_s = max(self.longest_s, time.monotonic() - started)

    async def more(self, count: int = 2, timeout_s: float = 60) -> None:
        """Wait for `count` more answers."""
        wanted = len(self.answers) + count
        async with asyncio.timeout(timeout_s):
            while len(self.answers) < wanted:
                assert not self.failures, self.failures
                await asyncio.sleep(0.02)


@asynccontextmanager
async def asking(system: WholeOS) -> AsyncIterator[Asker]:
    port = Port(system.kernel, "asker")
    await port.start()
    asker = Asker()
    task = asyncio.create_task(asker.ask(execution_pb2_grpc.ExecutionStub(port.channel)))
    try:
        await asker.more()
        yield asker
        assert not asker.failures, asker.failures
        assert len(set(asker.answers)) == 1, "a seed gives one text, whoever died meanwhile"
    finally:
        task.cancel()
        await port.stop(0)


@pytest.mark.parametrize(
    "name",
    ["kernel", "storage", "memory", "execution", "zygote", "worker/", "optimizer", "gateway"],
)
async def test_kill_one(os_up: WholeOS, name: str) -> None:
    async with asking(os_up) as asker:
        old = os_up.kill(name)
        back_s = await asyncio.to_thread(os_up.wait_new, name, old)
        await asker.more()
        print(f"{name}: back after {back_s:.2f} s, longest answer {asker.longest_s:.2f} s")
    await asyncio.to_thread(whole, os_up)


async def test_kill_init(os_up: WholeOS) -> None:
    before = {r.name: r.pid for r in os_up.records() if r.name not in ("init", "stand-in")}
    async with asking(os_up) as asker:
        old = os_up.kill("init")
        await asyncio.to_thread(os_up.wait_new, "init", old)
        await asker.more()
    after = {r.name: r.pid for r in os_up.records() if r.name not in ("init", "stand-in")}
    assert before.items() <= after.items(), "the new init adopts what runs"
    old = os_up.kill("storage")  # and supervises it
    await asyncio.to_thread(os_up.wait_new, "storage", old)
    await asyncio.to_thread(whole, os_up)


def whole(system: WholeOS, timeout_s: float = 30) -> None:
    """Wait until every process runs, and the HTTP face answers."""
    names = {"kernel", "storage", "memory", "execution", "optimizer", "gateway"}
    until = time.monotonic() + timeout_s
    while True:
        rows = {p["name"]: p for p in system.json("ps")}
        running = {n for n, p in rows.items() if p["state"] == "running"}
        if names <= running:
            break
        assert time.monotonic() < until, rows
        time.sleep(0.1)
    while True:
        try:
            answer = httpx.get(system.gateway() + "/v1/models", timeout=20)
            if answer.status_code == 200 and "smollm2" in answer.text:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < until
        time.sleep(0.1)
