"""Lies on the wire against a real kernel process: the liar alone goes, and nothing of it stays."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator, Iterator

import pytest
from kernel_process import KernelProcess
from kernel_siege import Siege, hello

from llmos.api.kernel.v1 import port_pb2 as wire

ROUNDS = int(os.environ.get("LLMOS_EXAMPLES", "60"))
BLOBS = "/llmos.api.storage.v1.Blobs/StatBlobs"
REFUSED = {"BAD_FRAME", "FRAME_TOO_LARGE", "PROTOCOL_VERSION", "REPLACED"}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelProcess]:
    process = KernelProcess(tmp_path_factory.mktemp("kernel"))
    process.start()
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
async def siege(kernel: KernelProcess) -> AsyncIterator[Siege]:
    made = Siege(kernel)
    async with made.bystander():
        yield made


def fresh() -> wire.Envelope:
    return hello(f"{next(_numbers):08}")


def opened(call: int = 1, path: str = BLOBS, parent: int = 0) -> wire.Envelope:
    asked = wire.Open(method=path, parent=parent)
    return wire.Envelope(call=call, kind=wire.KIND_OPEN, flags=5, open=asked)


def about(kind: int, call: int = 0) -> wire.Envelope:
    return wire.Envelope(call=call, kind=kind)  # type: ignore[arg-type]


LIES = {
    "no HELLO first": [opened()],
    "HELLO twice": [fresh(), fresh()],
    "HELLO without a name": [wire.Envelope(kind=wire.KIND_HELLO, hello=wire.Hello(protocol=1))],
    "an unknown kind": [fresh(), about(99)],
    "WELCOME from a port": [fresh(), about(wire.KIND_WELCOME)],
    "an even id for OPEN": [fresh(), opened(2)],
    "an id used again": [fresh(), opened(3), opened(3)],
    "an id that shrinks": [fresh(), opened(5), opened(3)],
    "DATA for a call never opened": [fresh(), about(wire.KIND_DATA, 11)],
    "END for a call it opened": [fresh(), opened(1), about(wire.KIND_END, 1)],
    "CANCEL of a call it serves": [fresh(), about(wire.KIND_CANCEL, 2)],
    "END of a call never given out": [fresh(), about(wire.KIND_END, 2**63)],
    "CREDIT without an export": [fresh(), about(wire.KIND_CREDIT)],
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_ends_the_liar_with_the_reason(siege: Siege, lie: str) -> None:
    async with siege.attached() as port:
        await port.say(*LIES[lie])
        error = await port.ends()
    assert (error.reason, error.code) == ("BAD_FRAME", 3), error


async def test_another_version_is_told_so(siege: Siege) -> None:
    async with siege.attached() as port:
        greeting = fresh()
        greeting.hello.protocol = 7
        await port.say(greeting)
        assert (await port.ends()).reason == "PROTOCOL_VERSION"


async def test_a_frame_over_the_limit(siege: Siege) -> None:
    async with siege.attached() as port:
        await port.say(fresh())
        await port.next(wire.KIND_WELCOME)
        await port.send(bytes((1 << 20) + 1))
        assert (await port.ends()).reason == "FRAME_TOO_LARGE"


async def test_forged_parents_end_the_call_alone(siege: Siege) -> None:
    async with siege.attached() as port:
        parents = (2, 4, 1, 2**63, 2**64 - 1)
        calls = [opened(2 * i + 1, parent=parent) for i, parent in enumerate(parents)]
        await port.say(fresh(), *calls)
        ended = [await port.next(wire.KIND_END) for _ in parents]
        assert {e.status.code for e in ended} == {1}
        assert all("not yours" in e.status.message for e in ended)
        await port.stays()


async def test_mutated_frames(siege: Siege) -> None:
    """Bytes of a sane conversation, changed at random: refused with a reason, or understood."""
    export = wire.Export(service="fuzz.Mutant", keys=["", "k"], credits=3)
    sane = [
        opened(1),
        wire.Envelope(call=1, kind=wire.KIND_EXPORT, export=export),
        wire.Envelope(call=1, kind=wire.KIND_DATA, payload=b"x" * 40, flags=5),
        wire.Envelope(call=1, kind=wire.KIND_WINDOW, window=99),
        about(wire.KIND_CANCEL, 1),
        about(wire.KIND_ALIVE),
    ]
    for seed in range(ROUNDS):
        dice = random.Random(seed)
        data = bytearray(wire.Frame(envelopes=sane).SerializeToString())
        for _ in range(dice.randint(1, 12)):
            at = dice.randrange(len(data))
            if dice.random() < 0.3:
                del data[at : at + dice.randint(1, 9)]
            else:
                data[at] = dice.randrange(256)
        async with siege.attached() as port:
            await port.say(fresh())
            await port.next(wire.KIND_WELCOME)
            await port.send(bytes(data))
            # A write that meets the end of its stream spoils the status on our side: look first.
            await asyncio.wait({port.read()}, timeout=0.05)
            stays = asyncio.create_task(port.stays())
            await asyncio.wait({port.read(), stays}, return_when=asyncio.FIRST_COMPLETED)
            assert stays.done() or (await port.ends()).reason in {*REFUSED, "INTERNAL"}, seed
            stays.cancel()


@pytest.mark.parametrize("path", ["/no.such/Service", BLOBS])
async def test_a_flood_of_calls_from_a_port_that_never_reads(siege: Siege, path: str) -> None:
    siege.echo.hold = None
    async with siege.attached() as port:
        await port.say(fresh())
        for first in range(1, 40_000, 4_000):
            await port.say(*(opened(n, path) for n in range(first, first + 4_000, 2)))
        await siege.more()


async def test_a_flood_that_waits_for_a_server_that_does_not_answer(siege: Siege) -> None:
    async with siege.attached() as silent, siege.attached() as port:
        export = wire.Export(service="fuzz.Silent", keys=[""], credits=5)
        await silent.say(fresh(), wire.Envelope(call=1, kind=wire.KIND_EXPORT, export=export))
        await silent.next(wire.KIND_EXPORTED)
        await port.say(fresh())
        for first in range(1, 50_000, 2_000):
            calls = (opened(n, "/fuzz.Silent/Call") for n in range(first, first + 2_000, 2))
            await port.say(*calls)
        refused = await port.next(wire.KIND_END)
        assert refused.status.code == 8 and "20000" in refused.status.message, refused
        await siege.more()


async def test_streams_that_die_at_once(siege: Siege) -> None:
    async def one() -> None:
        async with siege.attached() as port:
            await port.say(fresh(), opened(1))

    for _ in range(ROUNDS // 10):
        await asyncio.gather(*(one() for _ in range(20)))
