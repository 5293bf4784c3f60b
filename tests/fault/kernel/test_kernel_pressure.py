"""Servers that hang or drain, deadlines, cancelled calls, full queues, and slow subscribers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kernel_faults import Cell, cell, failure

from llmos.api.kernel.v1 import admin_pb2, events_pb2, events_pb2_grpc
from llmos.api.storage.v1 import registry_pb2 as pb

BLOBS = "llmos.api.storage.v1.Blobs"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Cell]:
    async with cell(tmp_path) as made:
        yield made


async def test_a_stopped_server_is_reported_and_its_calls_move(world: Cell) -> None:
    await world.server("a", stall_ms=700)
    asked = [world.ask(f"again{i}", 60) for i in range(4)]
    await world.started(*(f"again{i}" for i in range(4)))
    world.signal("a", signal.SIGSTOP)
    health = health_pb2_grpc.HealthStub(world.client.channel)
    request = health_pb2.HealthCheckRequest(service=BLOBS)
    async with asyncio.timeout(20):
        while (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING:
            await asyncio.sleep(0.05)
    assert (await world.port_of("a")).stalled
    second = await world.server("b", stall_ms=700)
    assert await asyncio.gather(*asked) == [second] * 4
    assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    world.signal("a", signal.SIGCONT)
    async with asyncio.timeout(20):
        while (await world.port_of("a")).stalled:
            await asyncio.sleep(0.05)


async def test_a_drained_port_finishes_and_gets_nothing_new(world: Cell) -> None:
    first = await world.server("a")
    running, once = world.ask("running", 4), world.once("once", 4)
    await world.started("running", "once")
    second = await world.server("b")
    port = await world.port_of("a")
    drained = await world.admin.DrainPort(admin_pb2.DrainPortRequest(port=port.port))
    assert drained.running == 2
    assert set(await asyncio.gather(*(world.ask(f"new{i}", 0) for i in range(20)))) == {second}
    assert await running == first and await once == b"once"


async def test_a_deadline_stops_the_work(world: Cell) -> None:
    await world.server("a", credits=1)
    for seconds in (0.5, 2, 8):  # in 0.5 s a busy machine may not even begin it
        late = world.ask("late", 60, timeout=seconds)
        waiting = world.ask("waiting", 0, timeout=seconds * 0.8)
        assert (await failure(late)).code == (await failure(waiting)).code == 4
        if world.count("start", "late"):
            break
    await world.until(lambda: world.count("cancel", "late") == world.count("start", "late") > 0)
    assert world.count("start", "waiting") == world.count("end", "late") == 0
    await world.ask("after", 0)


async def test_a_cancelled_call_stops_the_work(world: Cell) -> None:
    await world.server("a", credits=1)
    stream = world.blobs.ReadBlob(pb.ReadBlobRequest(sha256="s", length=1000, offset=1000))
    await world.started("s")
    stream.cancel()
    await world.until(lambda: world.count("cancel", "s") == 1)
    running = world.ask("running", 60)
    await world.started("running")
    calls = (await world.admin.ListCalls(admin_pb2.ListCallsRequest(service=BLOBS))).calls
    await world.admin.CancelCall(admin_pb2.CancelCallRequest(id=calls[0].id))
    assert (await failure(running)).reason == "CANCELLED_BY_OPERATOR"
    await world.until(lambda: world.count("cancel", "running") == 1)


async def test_a_full_queue_refuses_and_says_when_to_come_back(world: Cell) -> None:
    pid = await world.server("a", credits=1)
    limits = admin_pb2.KernelLimits(max_queued_per_key=5)
    await world.admin.UpdateLimits(admin_pb2.UpdateLimitsRequest(limits=limits))
    asked = [world.ask(f"idem{i}", 0.1) for i in range(20)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    served = [r for r in results if r == pid]
    errors = [await failure(call) for call in asked if call.exception() is not None]
    assert len(served) + len(errors) == 20 and 5 <= len(served) < 20
    assert {e.reason for e in errors} == {"QUEUE_FULL"}
    assert all(e.retry_after_s for e in errors)


async def test_a_slow_subscriber_is_told_what_it_missed(world: Cell) -> None:
    events = events_pb2_grpc.EventsStub(world.client.channel)
    slow = events.Subscribe(events_pb2.SubscribeRequest(patterns=["load.*"]))
    quick = events.Subscribe(events_pb2.SubscribeRequest(patterns=["load.*"]))
    await asyncio.gather(slow.initial_metadata(), quick.initial_metadata())
    total, got = 3000, 0

    async def take() -> None:
        nonlocal got
        async for _ in quick:
            got += 1

    taking = asyncio.create_task(take())
    payload = bytes(4000)  # so that the window of the one that does not read is full
    for first in range(0, total, 50):
        topics = [f"load.{number}" for number in range(first, first + 50)]
        requests = [events_pb2.PublishRequest(topic=topic, payload=payload) for topic in topics]
        await asyncio.gather(*(events.Publish(request) for request in requests))
    await world.until(lambda: got == total)
    received = missed = 0
    async with asyncio.timeout(30):
        while received + missed < total:
            event = await slow.read()
            assert isinstance(event, events_pb2.SubscribeResponse)
            received += 1
            missed += event.missed
    assert missed > 0
    taking.cancel()
    slow.cancel()
