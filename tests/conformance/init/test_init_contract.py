"""The Init service's contract, on init's own socket and through the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

import grpc
import pytest
from whole_os import WholeOS

from llmos.api.init.v1 import init_pb2, init_pb2_grpc
from llmos.lib.config import socket_address
from llmos.lib.rpc import from_rpc_error

MANAGED = {"kernel", "storage", "memory", "execution", "optimizer", "gateway"}


@pytest.fixture(params=["init", "kernel"])
async def init(
    request: pytest.FixtureRequest, os_up: WholeOS
) -> AsyncIterator[init_pb2_grpc.InitAsyncStub]:
    address = socket_address(os_up.state_dir, request.param)
    async with grpc.aio.insecure_channel(address) as channel:
        yield init_pb2_grpc.InitStub(channel)


async def refused(call: Awaitable[object]) -> tuple[int, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return error.code, error.reason, error.message


async def test_lists_managed_processes_in_order_then_the_others(
    init: init_pb2_grpc.InitAsyncStub,
) -> None:
    reply = await init.ListProcesses(init_pb2.ListProcessesRequest())
    managed = [p.name for p in reply.processes if p.managed]
    assert set(managed) == MANAGED and managed[0] == "kernel" and managed[-1] == "gateway"
    assert [p.managed for p in reply.processes] == sorted(
        (p.managed for p in reply.processes), reverse=True
    )
    others = [p.name for p in reply.processes if not p.managed]
    assert "init" in others and others == sorted(others)
    for process in reply.processes:
        assert process.pid and process.rss_bytes > 1 << 20 and process.uptime_s > 0
        assert process.state == init_pb2.PROCESS_STATE_RUNNING
    assert len({p.pid for p in reply.processes}) == len(reply.processes)


async def test_reads_a_log(init: init_pb2_grpc.InitAsyncStub) -> None:
    request = init_pb2.ReadLogRequest(name="kernel", lines=2)
    replies = [reply async for reply in init.ReadLog(request)]
    assert 1 <= sum(len(reply.lines) for reply in replies) <= 2


async def test_follows_a_log_until_cancelled(init: init_pb2_grpc.InitAsyncStub) -> None:
    call = init.ReadLog(init_pb2.ReadLogRequest(name="storage", follow=True))
    first = await call.read()
    assert isinstance(first, init_pb2.ReadLogResponse) and first.lines
    reading = asyncio.ensure_future(call.read())
    done, _ = await asyncio.wait([reading], timeout=0.3)
    assert not done or isinstance(reading.result(), init_pb2.ReadLogResponse)
    call.cancel()
    await asyncio.wait([reading])


@pytest.mark.parametrize("name", ["nope", "", "../run/init", "/etc/passwd"])
async def test_no_such_log(init: init_pb2_grpc.InitAsyncStub, name: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in init.ReadLog(init_pb2.ReadLogRequest(name=name)):
            pass
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (5, "NO_SUCH_PROCESS")
    assert "kernel" in error.message and "storage" in error.message


@pytest.mark.parametrize("name", ["nope", "", "init", "zygote"])
async def test_restarts_only_what_the_manifest_has(
    init: init_pb2_grpc.InitAsyncStub, name: str
) -> None:
    code, reason, message = await refused(
        init.RestartProcess(init_pb2.RestartProcessRequest(name=name))
    )
    assert (code, reason) == (5, "NO_SUCH_PROCESS") and "it has kernel, " in message


async def test_restart_answers_when_the_new_one_is_ready(
    init: init_pb2_grpc.InitAsyncStub,
) -> None:
    listed = await init.ListProcesses(init_pb2.ListProcessesRequest())
    (before,) = (p for p in listed.processes if p.name == "optimizer")
    reply = await init.RestartProcess(init_pb2.RestartProcessRequest(name="optimizer"))
    assert reply.process.pid != before.pid
    assert reply.process.restarts == before.restarts + 1
    assert reply.process.state == init_pb2.PROCESS_STATE_RUNNING
