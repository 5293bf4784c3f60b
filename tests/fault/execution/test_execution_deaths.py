"""kill -9 of each process of the execution server, under a real kernel, storage and memory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from execution_stack import Client, Stack, client, stack, until
from model_files import tiny_onnx

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.inference import open_inference_pb2
from llmos.api.kernel.v1 import admin_pb2
from llmos.api.memory.v1 import residency_pb2
from llmos.api.storage.v1 import registry_pb2
from llmos.lib.errors import Unavailable
from llmos.lib.rpc import from_rpc_error


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("deaths")) as running:
        yield running


@pytest.fixture
async def llmos(running: Stack) -> AsyncIterator[Client]:
    async with client(running) as client_:
        yield client_


@pytest.fixture
async def model(
    llmos: Client, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[str]:
    """A model of its own for each test: a crash of one must not count for another."""
    name = f"m{abs(hash(request.node.name))}"
    await llmos.import_model(str(tiny_onnx(tmp_path / "tiny.onnx")), name)
    yield name
    await llmos.unload(name)


async def test_a_killed_worker_is_back_at_the_next_call(
    running: Stack, llmos: Client, model: str
) -> None:
    expected = await llmos.infer(model)
    old = running.record(f"worker/{model}")
    os.kill(old.pid, signal.SIGKILL)
    np.testing.assert_array_equal(await llmos.infer(model), expected)
    new = running.record(f"worker/{model}")
    assert new.pid != old.pid
    grants = await llmos.residency.ListGrants(residency_pb2.ListGrantsRequest())
    assert [g.id for g in grants.grants].count(f"{model}@1#0") == 1


async def test_calls_in_a_loop_do_not_notice_a_killed_worker(
    running: Stack, llmos: Client, model: str
) -> None:
    expected = await llmos.infer(model)
    pid = running.record(f"worker/{model}").pid

    async def ask() -> None:
        for _ in range(50):
            np.testing.assert_array_equal(await llmos.infer(model), expected)
            await asyncio.sleep(0.02)

    async def kill() -> None:
        await asyncio.sleep(0.3)
        os.kill(pid, signal.SIGKILL)

    await asyncio.gather(ask(), ask(), kill())
    assert running.record(f"worker/{model}").pid != pid


async def test_one_of_two_workers_dies_and_the_other_serves(
    running: Stack, llmos: Client, model: str
) -> None:
    options = pb.LoadOptions(instances=2, threads=1)
    loaded = (
        await llmos.execution.LoadModel(
            pb.LoadModelRequest(model=model, options=options), timeout=120
        )
    ).model
    first, second = loaded.instances
    assert (first.number, second.number) == (0, 1) and first.pid != second.pid
    named = {r.name: r.pid for r in running.records(f"worker/{model}@1")}
    assert named == {f"worker/{model}@1": first.pid, f"worker/{model}@1#1": second.pid}
    assert (len(first.cpus), first.threads, second.threads) == (1, 1, 1)
    if (os.cpu_count() or 1) > 1:
        assert first.cpus != second.cpus, "they do not fight for a core"
    expected = await llmos.infer(model)
    await asyncio.gather(*(llmos.infer(model) for _ in range(40)))
    ports = await llmos.admin.ListPorts(admin_pb2.ListPortsRequest(), timeout=20)
    served = {p.pid: p.served for p in ports.ports}
    assert served[first.pid] > 5 and served[second.pid] > 5, "calls are shared out"
    statistics = await llmos.inference.ModelStatistics(
        open_inference_pb2.ModelStatisticsRequest(name=model), timeout=20
    )
    (sums,) = statistics.model_stats
    assert sums.inference_count == 41

    os.kill(first.pid, signal.SIGKILL)
    for answer in await asyncio.gather(*(llmos.infer(model) for _ in range(20))):
        np.testing.assert_array_equal(answer, expected)

    def again() -> bool:
        names = {r.name: r.pid for r in running.records(f"worker/{model}@1")}
        return len(names) == 2 and first.pid not in names.values()

    await until(again)
    running.kill("execution")
    running.start("execution")
    kept = (await llmos.models())[f"{model}@1"]
    assert second.pid in [i.pid for i in kept.instances]
    await llmos.execution.LoadModel(
        pb.LoadModelRequest(model=model, options=pb.LoadOptions(instances=1)), timeout=60
    )
    assert len(running.records(f"worker/{model}@1")) == 1
    assert await llmos.unload(model) and not running.records(f"worker/{model}@1")


async def test_a_killed_zygote_is_replaced_and_workers_go_on(
    running: Stack, llmos: Client, model: str, tmp_path: Path
) -> None:
    await llmos.load(model)  # a call may be answered a moment before the zygote hears of it
    worker = running.record(f"worker/{model}").pid
    zygote = running.record("zygote").pid
    os.kill(zygote, signal.SIGKILL)
    await until(lambda: not running.records("zygote"))
    await llmos.infer(model)
    assert running.record(f"worker/{model}").pid == worker
    await llmos.import_model(str(tiny_onnx(tmp_path / "o.onnx", seed=1)), f"{model}o")
    await llmos.infer(f"{model}o")
    assert running.record("zygote").pid != zygote
    # A worker of the dead zygote can still be ended.
    assert await llmos.unload(model)
    assert await llmos.unload(f"{model}o")
    assert not running.records(f"worker/{model}")


async def test_a_stopped_zygote_is_replaced_during_a_load(
    running: Stack, llmos: Client, model: str
) -> None:
    zygote = running.record("zygote").pid
    os.kill(zygote, signal.SIGSTOP)
    loaded = await asyncio.wait_for(llmos.load(model), 60)
    assert loaded.state == pb.MODEL_STATE_READY
    assert running.record("zygote").pid != zygote


def test_a_manager_that_stops_leaves_no_zygote_that_is_still_starting(tmp_path: Path) -> None:
    with stack(tmp_path) as running:
        until_s = time.monotonic() + 30
        while "starting the zygote" not in (log := running.processes.log("execution")):
            assert time.monotonic() < until_s
            time.sleep(0.01)
        (line,) = [line for line in log.splitlines() if "starting the zygote" in line]
        assert running.processes.stop("execution") == 0
        assert not Path(f"/proc/{json.loads(line)['pid']}").exists()


async def test_a_zygote_killed_during_a_load_costs_only_time(
    running: Stack, llmos: Client, model: str
) -> None:
    zygote = running.record("zygote").pid
    loading = asyncio.create_task(llmos.load(model))
    log = running.state_dir / "logs" / f"worker+{model}@1.log"
    await until(log.exists)
    os.kill(zygote, signal.SIGKILL)
    assert (await loading).state == pb.MODEL_STATE_READY
    assert len(running.records(f"worker/{model}")) == 1


async def test_a_new_manager_adopts_the_workers(running: Stack, llmos: Client, model: str) -> None:
    await llmos.load(model, pin=True)
    before = (await llmos.models())[f"{model}@1"]
    zygote = running.record("zygote").pid
    running.kill("execution")
    await llmos.infer(model)  # the worker does not need the manager
    running.start("execution")
    after = (await llmos.models())[f"{model}@1"]
    for field in ("state", "pid", "granted_bytes", "keys", "engine", "device", "is_default"):
        assert getattr(after, field) == getattr(before, field), field
    assert running.record("zygote").pid == zygote

    async def reported() -> bool:
        grants = await llmos.residency.ListGrants(residency_pb2.ListGrantsRequest())
        return any(g.id == f"{model}@1#0" and g.pinned and g.used_bytes for g in grants.grants)

    for _ in range(100):
        if await reported():
            break
        await asyncio.sleep(0.1)
    assert await reported()
    os.kill(after.pid, signal.SIGKILL)  # and it watches them
    await llmos.infer(model)
    assert await llmos.unload(model)


async def test_a_manager_killed_during_a_load_leaves_nothing_half_done(
    running: Stack, llmos: Client, model: str
) -> None:
    call = asyncio.create_task(llmos.infer(model))
    await asyncio.sleep(0.15)
    running.kill("execution")
    running.start("execution")
    await call  # the kernel asks the next manager
    assert len(running.records(f"worker/{model}")) == 1


async def test_memory_and_storage_may_be_away_for_a_while(
    running: Stack, llmos: Client, model: str
) -> None:
    for name in ("storage", "memory"):
        running.kill(name)
    call = asyncio.create_task(llmos.infer(model))
    await asyncio.sleep(0.5)
    assert not call.done()
    running.start("storage", "memory")
    await call


async def test_killed_again_and_again_a_model_loses_no_call(
    running: Stack, llmos: Client, model: str
) -> None:
    for _ in range(5):
        ready = await llmos.load(model)
        call = asyncio.create_task(llmos.infer(model))
        os.kill(ready.pid, signal.SIGKILL)  # within the first moments of its life
        await call


async def test_a_crash_loop_is_refused_with_the_cause(
    running: Stack, llmos: Client, model: str
) -> None:
    for _ in range(3):
        ready = await llmos.load(model)
        os.kill(ready.pid, signal.SIGSEGV)
        await until(lambda pid=ready.pid: not os.path.exists(f"/proc/{pid}"))  # type: ignore[misc]
        await asyncio.sleep(0.3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await llmos.infer(model)
    error = from_rpc_error(caught.value)
    assert isinstance(error, Unavailable)
    assert error.reason == "CRASH_LOOP"
    assert "SIGSEGV" in error.message
    listed = (await llmos.models())[f"{model}@1"]
    assert listed.state == pb.MODEL_STATE_FAILED
    assert "SIGSEGV" in listed.reason


async def test_a_worker_whose_thread_dies_exits() -> None:
    """In a process of its own: the hook that a worker installs."""
    code = (
        "import threading\n"
        "from llmos.servers.execution.worker import birth\n"
        "threading.excepthook = birth._thread_died\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\n"
        "thread.start(); thread.join()\n"
        "import time; time.sleep(30)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 70
    assert b"ZeroDivisionError" in err


async def test_a_killed_kernel_finds_the_same_workers(
    running: Stack, llmos: Client, model: str
) -> None:
    expected = await llmos.infer(model)
    worker = running.record(f"worker/{model}").pid
    running.kill("kernel")
    asking = asyncio.create_task(llmos.infer(model))
    await asyncio.sleep(0.2)
    running.start("kernel")
    np.testing.assert_array_equal(await asking, expected)
    for _ in range(20):
        np.testing.assert_array_equal(await llmos.infer(model), expected)
    assert running.record(f"worker/{model}").pid == worker


async def test_a_version_is_not_deleted_while_it_is_loaded(
    running: Stack, llmos: Client, model: str
) -> None:
    """Nor while its manager is dead; once unloaded it goes at once."""
    await llmos.infer(model)

    async def delete() -> str:
        request = registry_pb2.DeleteVersionRequest(ref=f"{model}@1", force=True)
        try:
            await llmos.registry.DeleteVersion(request)
        except grpc.aio.AioRpcError as exc:
            return str(from_rpc_error(exc))
        return ""

    assert "execution on" in (said := await delete()) and "has a lease on it" in said
    running.kill("execution")
    assert "has a lease on it" in await delete()
    running.start("execution")
    assert "has a lease on it" in await delete()
    await llmos.unload(model)
    assert await delete() == ""
