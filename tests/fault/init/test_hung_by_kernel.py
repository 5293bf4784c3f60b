"""Processes that hang with calls to answer: the kernel finds them, init kills and restarts them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_os import TinyOS, tiny_os

from llmos.api.kernel.v1 import events_pb2, events_pb2_grpc
from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc
from llmos.lib.config import socket_address
from llmos.lib.port import Port

WHY = "killed by SIGKILL (hung: it had calls in progress and made no progress in its stall time)"
STUCK = Path(__file__).parents[2] / "support" / "stuck_server.py"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyOS]:
    folder = tmp_path_factory.mktemp("os")
    stuck = json.dumps(["{python}", str(STUCK), "{state_dir}", str(folder / "stuck.flag")])
    manifest = f"""
[processes.kernel]
[processes.storage]
after = ["kernel"]
[processes.stuck]
after = ["kernel"]
command = {stuck}
[kernel]
tcp = "none"
[storage]
stall_s = 1.5
[init]
hang_s = 60
"""
    with tiny_os(folder, manifest) as system:
        system.up()
        yield system


@pytest.fixture
async def port(system: TinyOS) -> AsyncIterator[Port]:
    port = Port(socket_address(system.state_dir, "kernel"), "test")
    await port.start()
    yield port
    await port.stop(0)


async def listen(port: Port) -> tuple[asyncio.Task[None], list[tuple[str, dict[str, Any]]]]:
    """Subscribe to the events of processes; returns when nothing is missed any more."""
    events: list[tuple[str, dict[str, Any]]] = []
    request = events_pb2.SubscribeRequest(patterns=["process.*"])
    stream = events_pb2_grpc.EventsStub(port.channel).Subscribe(request)
    await stream.initial_metadata()

    async def take() -> None:
        async for event in stream:
            events.append((event.topic, json.loads(event.payload)))

    return asyncio.create_task(take()), events


async def seen(events: list[tuple[str, dict[str, Any]]], topic: str, **facts: object) -> None:
    """Wait for an event."""
    async with asyncio.timeout(20):
        while not any(t == topic and facts.items() <= e.items() for t, e in events):
            await asyncio.sleep(0.02)


async def test_a_stopped_storage_is_replaced_and_its_calls_are_served(
    system: TinyOS, port: Port
) -> None:
    taking, events = await listen(port)
    registry = registry_pb2_grpc.RegistryStub(port.channel)
    await registry.ListVersions(registry_pb2.ListVersionsRequest(), timeout=10)
    old = system.ps()["storage"]
    os.kill(old["pid"], signal.SIGSTOP)
    began = time.monotonic()
    await registry.ListVersions(registry_pb2.ListVersionsRequest(), timeout=30)
    assert time.monotonic() - began < 15
    new = system.ps()["storage"]
    assert (new["restarts"], new["last_exit"]) == (old["restarts"] + 1, WHY)
    crash = system.log("storage.crash")
    assert f"pid {old['pid']}: {WHY}" in crash
    await seen(events, "process.hung", name="storage", pid=old["pid"], managed=True)
    await seen(events, "process.died", name="storage", pid=old["pid"], how=WHY)
    await seen(events, "process.restarted", name="storage", pid=new["pid"])
    taking.cancel()


async def test_a_deadlock_behind_a_healthy_face(system: TinyOS, port: Port) -> None:
    (system.state_dir.parent / "stuck.flag").touch()
    old = system.ps()["stuck"]
    blobs = registry_pb2_grpc.BlobsStub(port.channel)
    # `stuck` and `storage` both serve Blobs: ask until the one that hangs has the call.
    request = registry_pb2.StatBlobsRequest(sha256=["0" * 64])
    async with asyncio.timeout(60):
        while (new := system.ps()["stuck"])["restarts"] == old["restarts"]:
            await blobs.StatBlobs(request, timeout=30)
    assert new["last_exit"] == WHY or new["state"] != "running"
    assert not (system.state_dir.parent / "stuck.flag").exists()
    processes = await asyncio.to_thread(
        system.until, lambda ps: ps["stuck"]["state"] == "running" and ps["stuck"]["pid"]
    )
    assert processes["stuck"]["last_exit"] == WHY
    assert processes["storage"]["pid"] == system.pid("storage")
    await blobs.StatBlobs(request, timeout=30)


async def test_idle_processes_that_do_nothing_are_left_alone(system: TinyOS) -> None:
    before = {name: p["pid"] for name, p in system.ps().items()}
    await asyncio.sleep(4)
    assert {name: p["pid"] for name, p in system.ps().items()} == before
