"""Aliases move and move back by how live calls go, as a real kernel counts them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from job_world import World, world
from tiny_text import tiny_bert

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1 import execution_pb2_grpc
from llmos.api.kernel.v1 import admin_pb2
from llmos.api.optimizer.v1 import jobs_pb2, process_pb2
from llmos.api.storage.v1 import aliases_pb2, aliases_pb2_grpc
from llmos.kernel.transport.server import KernelServer
from llmos.lib.errors import FailedPrecondition, Internal
from llmos.lib.port import ExportSpec, Port
from llmos.lib.serve import Recorder
from llmos.servers.optimizer.folder import Report
from llmos.servers.optimizer.job.chains.live import Calls, Watch
from llmos.servers.optimizer.job.chains.promotion import Promoter
from llmos.servers.optimizer.job.context import JobContext
from llmos.servers.optimizer.job.storage import Storage

NEW, OLD = "m@2", "m@1"


class Worker(execution_pb2_grpc.ExecutionServicer):
    """Answers after a while, or not at all."""

    delay_s = 0.0
    broken = False

    async def Embed(self, request: Any, context: Any) -> pb.EmbedResponse:
        await asyncio.sleep(self.delay_s)
        if self.broken:
            raise Internal("STEP_FAILED", "It is broken.")
        return pb.EmbedResponse()


class Killed(Exception):
    """Where a process would be killed."""


class Dying(Promoter):
    """Dies when it has made its second move."""

    moves = 0

    async def _watch(self, ref: str, before: Calls) -> str:
        self.moves += 1
        if self.moves == 2:
            raise Killed
        return ""


class Live:
    """Two versions of a model with a worker each; `prod` is the old one."""

    def __init__(self, models: World, kernel: grpc.aio.Channel) -> None:
        self.models, self.kernel = models, kernel
        self.workers = {ref: Worker() for ref in (OLD, NEW)}  # type: ignore[abstract]
        self.aliases: aliases_pb2_grpc.AliasesAsyncStub = aliases_pb2_grpc.AliasesStub(
            models.channel
        )

    async def call(self, ref: str, count: int = 4) -> None:
        stub: execution_pb2_grpc.ExecutionAsyncStub = execution_pb2_grpc.ExecutionStub(self.kernel)

        async def one() -> None:
            request = pb.EmbedRequest(model=ref, texts=["a"])
            await stub.Embed(request, timeout=20, metadata=(("llmos-key", ref),))

        await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)

    async def promote(self, promoter: type[Promoter] = Promoter, **limits: Any) -> None:
        """Promote the new version while calls on it go on."""
        promotion = jobs_pb2.Promotion(alias="prod", min_calls=3, **limits)
        root = self.models.root
        to = {"storage": self.models.channel, "kernel": self.kernel}
        launch, report = process_pb2.JobLaunch(id="job"), Report(root / "progress")
        context = JobContext(launch, root, Storage(to["storage"]), report, to.__getitem__)
        moving = asyncio.create_task(promoter(context, promotion).run(NEW))
        while not moving.done():
            await self.call(NEW)
            await asyncio.sleep(0.01)
        report.close()
        await moving

    async def means(self, alias: str) -> int:
        """Return the version that an alias means; 0 when there is none."""
        request = aliases_pb2.ListAliasesRequest(model="m")
        found = (await self.aliases.ListAliases(request)).aliases
        return next((a.version for a in found if a.alias == alias), 0)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with AsyncExitStack() as stack:
        models = await stack.enter_async_context(world(tmp_path))
        for seed in (1, 2):
            await models.import_model(tiny_bert(tmp_path / f"m{seed}", seed=seed), "m")
        kernel, address = KernelServer(), f"unix:{tmp_path}/kernel.sock"
        await kernel.start([address])
        stack.push_async_callback(kernel.stop, 0)
        client = Port(address, "job/1")
        found = Live(models, client.channel)
        for ref, worker in found.workers.items():
            recorder, port = Recorder(), Port(address, f"worker/{ref}")
            add: Any = execution_pb2_grpc.add_ExecutionServicer_to_server
            add(worker, recorder)
            for service, handlers in recorder.services.items():
                port.serve(ExportSpec(service, [ref], 8), handlers)
            await port.start()
            stack.push_async_callback(port.stop, 0)
        await client.start()
        stack.push_async_callback(client.stop, 0)
        await found.aliases.SetAlias(
            aliases_pb2.SetAliasRequest(model="m", alias="prod", version=1)
        )
        yield found


async def test_it_stays_where_calls_go_well(live: Live) -> None:
    await live.call(OLD)
    await live.promote(canary="canary", watch_s=0.6, max_p99_ms=60_000, max_slowdown=1e6)
    assert (await live.means("prod"), await live.means("canary")) == (2, 2)


async def test_a_slow_canary_never_becomes_prod(live: Live) -> None:
    live.workers[NEW].delay_s = 0.5
    with pytest.raises(FailedPrecondition) as caught:
        await live.promote(canary="canary", watch_s=60, max_p99_ms=100)
    assert caught.value.reason == "ROLLED_BACK"
    assert "canary was moved to m@2 and back again: the 99th" in caught.value.message
    assert (await live.means("prod"), await live.means("canary")) == (1, 0)


async def test_a_try_after_a_killed_one_takes_back_the_move_that_was_watched(live: Live) -> None:
    limits: dict[str, Any] = {"canary": "canary", "watch_s": 60, "max_p99_ms": 100}
    with pytest.raises(Killed):
        await live.promote(Dying, **limits)
    assert (await live.means("prod"), await live.means("canary")) == (2, 2)
    live.workers[NEW].delay_s = 0.5
    with pytest.raises(FailedPrecondition, match="prod was moved to m@2 and back again"):
        await live.promote(**limits)
    assert (await live.means("prod"), await live.means("canary")) == (1, 2)


async def test_it_goes_back_when_it_is_slower_than_the_one_before(live: Live) -> None:
    await live.call(OLD)
    live.workers[NEW].delay_s = 1.5
    with pytest.raises(FailedPrecondition) as caught:
        await live.promote(watch_s=60, max_slowdown=1.2)
    assert "of the version before it was" in caught.value.message
    assert await live.means("prod") == 1


async def test_it_goes_back_when_calls_fail(live: Live) -> None:
    live.workers[NEW].broken = True
    with pytest.raises(FailedPrecondition) as caught:
        await live.promote(watch_s=60)
    assert "calls failed, at most 1.0% may" in caught.value.message
    assert await live.means("prod") == 1


def port(number: int, served: int, latency: list[int]) -> admin_pb2.PortInfo:
    export = admin_pb2.ExportInfo(keys=[NEW])
    return admin_pb2.PortInfo(port=number, served=served, latency=latency, exports=[export])


def test_calls_are_those_since_the_watch_began() -> None:
    watch = Watch(NEW)
    watch.take([port(1, 10, [0, 10])])
    assert watch.total().served == 0
    watch.take([port(1, 14, [0, 12, 0, 2]), port(2, 5, [5])])  # a new worker: all of its calls
    assert (watch.total().served, list(watch.total().latency)) == (9, [5, 2, 0, 2])
    watch.take([port(2, 6, [6])])  # the first one has died
    assert watch.total().served == 10
    watch.take([port(2, 2, [2])])  # another kernel counts from 0
    assert watch.total().served == 6


def test_the_99th_percentile() -> None:
    assert Calls().p99_ms == 0
    assert Calls(latency=[0] * 40 + [100]).p99_ms == pytest.approx(102.4)
    assert Calls(latency=[99] + [0] * 39 + [1]).p99_ms == pytest.approx(0.1)
    assert Calls(latency=[98] + [0] * 39 + [2]).p99_ms == pytest.approx(102.4)
