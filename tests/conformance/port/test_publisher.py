"""Servers' events over a real kernel: in order, in the background, never in the way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llmos.api.kernel.v1 import events_pb2, events_pb2_grpc
from llmos.kernel.transport.server import KernelServer
from llmos.lib.port import Port
from llmos.lib.publish import MAX_WAITING, Publisher


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    kernel = KernelServer()
    await kernel.start([f"unix:{tmp_path}/k.sock"])
    port = Port(f"unix:{tmp_path}/k.sock", "teller")
    await port.start()
    yield port
    await port.stop(0)
    await kernel.stop(0)


async def subscribed(port: Port) -> Any:
    request = events_pb2.SubscribeRequest(patterns=["*"])
    stream: Any = events_pb2_grpc.EventsStub(port.channel).Subscribe(request)
    await stream.initial_metadata()
    return stream


async def test_facts_come_in_order_as_json(port: Port) -> None:
    stream = await subscribed(port)
    publisher = Publisher(port.channel)
    for number in range(20):
        publisher.tell("model.loaded", model=f"m@{number}", ready=True, results=["ä"])
    for number in range(20):
        event = await asyncio.wait_for(stream.read(), 10)
        facts = json.loads(event.payload)
        assert time.time() - facts.pop("at") < 60
        assert facts == {"model": f"m@{number}", "ready": True, "results": ["ä"]}
        assert (event.topic, event.publisher) == ("model.loaded", port.instance)
    stream.cancel()


async def test_what_is_told_before_there_is_a_kernel_waits_for_it(port: Port) -> None:
    publisher = Publisher()
    for number in range(MAX_WAITING + 5):
        publisher.tell("process.died", number=number)
    stream = await subscribed(port)
    publisher.connect(port.channel)
    event = await asyncio.wait_for(stream.read(), 10)
    assert json.loads(event.payload)["number"] == 5, "the oldest went"
    stream.cancel()


async def test_what_the_kernel_refuses_is_lost_and_nothing_else(port: Port) -> None:
    stream = await subscribed(port)
    publisher = Publisher(port.channel)
    publisher.tell("too.large", text="x" * 70_000)
    publisher.tell("bad*topic")
    publisher.tell("good.topic")
    event = await asyncio.wait_for(stream.read(), 10)
    assert event.topic == "good.topic"
    stream.cancel()


async def test_telling_a_closed_port_does_no_harm(port: Port) -> None:
    publisher = Publisher(port.channel)
    await port.stop(0)
    publisher.tell("too.late")
    await asyncio.sleep(0.1)
    publisher.tell("later.still")
    await asyncio.sleep(0.1)
