"""Every server is replaced, one by one, under load: no call fails; then the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_os import TinyOS, tiny_os

from llmos.api.memory.v1 import residency_pb2, residency_pb2_grpc
from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc, state_pb2, state_pb2_grpc
from llmos.lib.config import socket_address
from llmos.lib.port import Port

MANIFEST = """
[processes.kernel]
[processes.storage]
after = ["kernel"]
[processes.memory]
after = ["kernel"]
[kernel]
tcp = "none"
"""


@pytest.fixture
def system(tmp_path: Path) -> Iterator[TinyOS]:
    with tiny_os(tmp_path, MANIFEST) as system:
        system.up()
        yield system


async def repeat(call: Callable[[int], Awaitable[Any]], done: list[int]) -> None:
    number = 0
    while True:
        await call(number)  # whatever it raises fails the test
        number += 1
        done.append(number)
        await asyncio.sleep(0.002)


async def test_restart_all_under_load(system: TinyOS) -> None:
    before = {name: p["pid"] for name, p in system.ps().items() if p["managed"]}
    port = Port(socket_address(system.state_dir, "kernel"), "load")
    await port.start()
    registry = registry_pb2_grpc.RegistryStub(port.channel)
    documents = state_pb2_grpc.DocumentsStub(port.channel)
    residency = residency_pb2_grpc.ResidencyStub(port.channel)
    calls: list[Callable[[int], Awaitable[Any]]] = [
        lambda n: registry.ListVersions(registry_pb2.ListVersionsRequest(), timeout=30),
        lambda n: residency.ListGrants(residency_pb2.ListGrantsRequest(), timeout=30),
        lambda n: documents.PutDocument(
            state_pb2.PutDocumentRequest(key=f"test/{n}", value=b"x", if_mod_revision=0), timeout=30
        ),  # not idempotent: a second run would find the document and fail
    ]
    done: list[list[int]] = [[] for _ in calls]
    load = [asyncio.create_task(repeat(c, d)) for c, d in zip(calls, done, strict=True)]
    try:
        while min(map(len, done)) < 5:
            await asyncio.sleep(0.01)
        rolled = await asyncio.to_thread(system.ctl, "restart", "--all")
        assert rolled.returncode == 0, rolled.stderr
        counts = [len(d) for d in done]
        while any(len(d) < n + 5 for d, n in zip(done, counts, strict=True)):
            assert not any(task.done() for task in load), load
            await asyncio.sleep(0.01)
        assert not any(task.done() for task in load), load
        load.pop().cancel()  # only what may be repeated is sure to survive a new kernel
        rolled = await asyncio.to_thread(system.ctl, "restart", "kernel")
        assert rolled.returncode == 0, rolled.stderr
        counts = [len(d) for d in done[:2]]
        while any(len(d) < n + 5 for d, n in zip(done, counts, strict=False)):
            assert not any(task.done() for task in load), load
            await asyncio.sleep(0.01)
    finally:
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)
        await port.stop(0)
    after = {name: p["pid"] for name, p in system.ps().items() if p["managed"]}
    assert before.keys() == after.keys() == {"kernel", "storage", "memory"}
    assert not set(before.values()) & set(after.values())


def test_restart_wants_to_know_what(system: TinyOS) -> None:
    done = system.ctl("restart")
    assert done.returncode != 0 and "--all" in done.stderr and "Traceback" not in done.stderr
