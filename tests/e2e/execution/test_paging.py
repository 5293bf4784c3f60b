"""More models than memory, and models that are held: through a real kernel, with real workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from execution_stack import Client, Stack, client, stack, until
from model_files import tiny_onnx

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.memory.v1 import residency_pb2
from llmos.lib.errors import LLMOSError
from llmos.lib.rpc import from_rpc_error
from llmos.servers.execution.manager.measuring import pss
from llmos.servers.memory.devices import total_ram

MODELS = 10
ROOM = 3  # of them fit


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    one = (128 << 20) + (1 << 20)  # what the engine asks for a tiny model, and a bit
    fraction = ROOM * one / total_ram()
    flags = {"memory": ("--ram-fraction", f"{fraction:.9f}")}
    with stack(tmp_path_factory.mktemp("paging"), **flags) as running:
        yield running


@pytest.fixture
async def llmos(running: Stack, tmp_path: Path) -> AsyncIterator[Client]:
    async with client(running) as client_:
        if not await client_.models():
            for i in range(MODELS):
                path = tmp_path / f"m{i}.onnx"
                tiny_onnx(path, seed=i)
                await client_.import_model(str(path), f"m{i}")
        yield client_
        for model in (await client_.models()).values():
            if model.pid:
                await client_.unload(f"{model.name}@{model.version}")


async def grants(llmos: Client) -> dict[str, residency_pb2.Grant]:
    reply = await llmos.residency.ListGrants(residency_pb2.ListGrantsRequest(), timeout=30)
    return {g.id: g for g in reply.grants}


async def refused(call: Awaitable[object]) -> LLMOSError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_more_models_than_room_and_nobody_is_refused(llmos: Client) -> None:
    """Callers of ten models in the room of three; those that find no room wait for it."""
    needed = (
        await llmos.execution.LoadModel(pb.LoadModelRequest(model="m0", dry_run=True), timeout=60)
    ).needed_bytes
    device = (await llmos.residency.ListDevices(residency_pb2.ListDevicesRequest())).devices[0]
    assert 2 * needed <= device.budget_bytes < MODELS * needed
    shares = 1 / np.arange(1, MODELS + 1)
    picks = np.random.default_rng(0).choice(MODELS, 80, p=shares / shares.sum())
    queue = iter(picks.tolist())

    async def caller() -> int:
        done = 0
        for model in queue:
            await llmos.infer(f"m{model}", timeout=110)
            done += 1
        return done

    assert sum(await asyncio.gather(*(caller() for _ in range(6)))) == len(picks)
    held = (await llmos.residency.ListDevices(residency_pb2.ListDevicesRequest())).devices[0]
    assert held.granted_bytes <= held.budget_bytes


async def test_a_held_model_is_not_taken_from_its_holders(llmos: Client) -> None:
    """Triton issue 3583: one client unloads what another has just loaded."""

    def hold() -> Any:
        return llmos.execution.HoldModel(pb.HoldModelRequest(model="m1"), timeout=100)

    one, two = hold(), hold()
    pid = (await one.read()).model.pid
    assert (await two.read()).model.pid == pid
    error = await refused(llmos.execution.UnloadModel(pb.UnloadModelRequest(model="m1")))
    assert error.reason == "HELD" and "2 client" in error.message
    for i in range(2, 6):  # others come and go around it
        await llmos.infer(f"m{i}", timeout=60)
    listed = (await llmos.models())["m1@1"]
    assert (listed.pid, listed.leases) == (pid, 2)
    one.cancel()  # its client is gone, the other is not
    error = await refused(llmos.execution.UnloadModel(pb.UnloadModelRequest(model="m1")))
    assert error.reason == "HELD"
    os.kill(pid, signal.SIGKILL)  # a held model comes back by itself
    again = (await two.read()).model.pid
    assert again not in (0, pid)
    request = pb.UnloadModelRequest(model="m1", force=True)
    assert (await llmos.execution.UnloadModel(request, timeout=30)).was_loaded
    error = await refused(two.read())
    assert error.reason == "UNLOADED"


async def test_what_is_held_or_pinned_fills_the_room(llmos: Client) -> None:
    await llmos.load("m1", pin=True)
    holds = []
    for i in range(2, 12):
        call = llmos.execution.HoldModel(pb.HoldModelRequest(model=f"m{i % MODELS}"), timeout=60)
        try:
            assert await call.read() is not grpc.aio.EOF
        except grpc.aio.AioRpcError as exc:
            error = from_rpc_error(exc)
            break
        holds.append(call)
    assert error.reason == "OVER_BUDGET" and "leases" in error.message and "pinned" in error.message
    plan = pb.LoadModelRequest(model="m9", dry_run=True)
    assert (await refused(llmos.execution.LoadModel(plan, timeout=60))).reason == "OVER_BUDGET"
    for call in holds:
        call.cancel()
    unpinned = pb.LoadModelRequest(model="m1", unpin=True)
    assert not (await llmos.execution.LoadModel(unpinned, timeout=60)).model.pinned
    await llmos.infer("m9", timeout=60)


async def test_the_books_agree_with_the_operating_system(running: Stack, llmos: Client) -> None:
    for i in range(2):
        await llmos.infer(f"m{i}")

    async def agree() -> bool:
        held = await grants(llmos)
        pids = {f"{k}#0": m.pid for k, m in (await llmos.models()).items() if m.pid}
        real = {id: pss(pid) for id, pid in pids.items()}
        return set(real) == set(held) and all(
            # Who served whom is reported with the next round of books, not at once.
            g.tenant and g.served and abs(g.used_bytes - real[id]) <= 0.05 * real[id]
            for id, g in held.items()
        )

    for _ in range(40):
        if await agree():
            break
        await asyncio.sleep(0.5)
    else:
        raise AssertionError(f"the accounts are off by more than 5 %: {await grants(llmos)}")


async def test_the_memory_server_dies_and_grants_are_rebuilt(running: Stack, llmos: Client) -> None:
    await llmos.load("m1", pin=True)
    await llmos.infer("m2")
    before = {id: (g.bytes, g.pinned) for id, g in (await grants(llmos)).items()}
    running.kill("memory")
    await llmos.infer("m2")  # what is loaded serves on
    running.start("memory")

    async def rebuilt() -> bool:
        return {id: (g.bytes, g.pinned) for id, g in (await grants(llmos)).items()} == before

    for _ in range(60):
        if await rebuilt():
            break
        await asyncio.sleep(0.25)
    else:
        raise AssertionError("the grants did not come back")
    await llmos.infer("m3")  # and room is made by the same books


async def test_a_dead_worker_gives_its_grant_back(llmos: Client) -> None:
    pid = (await llmos.load("m1")).pid
    os.kill(pid, signal.SIGKILL)
    names: set[str] = {"m1@1#0"}

    async def look() -> None:
        while "m1@1#0" in names:
            names.clear()
            names.update(await grants(llmos))
            await asyncio.sleep(0.05)

    await asyncio.wait_for(look(), 20)
    await until(lambda: not os.path.exists(f"/proc/{pid}"))


async def test_pins_and_holds_outlive_manager_and_kernel(running: Stack, llmos: Client) -> None:
    await llmos.load("m1", pin=True)
    hold = llmos.execution.HoldModel(pb.HoldModelRequest(model="m2"), timeout=600)
    held = await hold.read()
    assert isinstance(held, pb.HoldModelResponse)
    pids = {"m1": (await llmos.models())["m1@1"].pid, "m2": held.model.pid}

    async def kept() -> None:
        while True:  # a client of the kernel that died sees that it is away
            with contextlib.suppress(grpc.aio.AioRpcError):
                models = await llmos.models()
                known = {id: (g.pinned, g.leases) for id, g in (await grants(llmos)).items()}
                if known == {"m1@1#0": (True, 0), "m2@1#0": (False, 1)}:
                    break
            await asyncio.sleep(0.05)
        assert {n: models[f"{n}@1"].pid for n in pids} == pids
        request = pb.UnloadModelRequest(model="m2")
        assert (await refused(llmos.execution.UnloadModel(request, timeout=30))).reason == "HELD"
        for i in (3, 4):  # others come and go beside them
            await llmos.infer(f"m{i}", timeout=60)
        assert {n: (await llmos.models())[f"{n}@1"].pid for n in pids} == pids
        await llmos.unload("m4")

    await kept()
    for name in ("execution", "kernel"):
        running.kill(name)
        running.start(name)
        await asyncio.wait_for(kept(), 60)
    hold.cancel()
    await llmos.execution.LoadModel(pb.LoadModelRequest(model="m1", unpin=True), timeout=60)
