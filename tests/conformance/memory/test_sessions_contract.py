"""The contract of Sessions: in process, over its own address, through a kernel, over ports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from llmos.api.memory.v1 import sessions_pb2 as pb
from llmos.api.memory.v1.sessions_pb2_grpc import SessionsStub, add_SessionsServicer_to_server
from llmos.kernel.transport.server import KernelServer
from llmos.lib.config import ServerConfig, socket_address
from llmos.lib.errors import (
    AlreadyExists,
    InvalidArgument,
    LLMOSError,
    NotFound,
    OutOfRange,
)
from llmos.lib.port import Port
from llmos.lib.rpc import from_rpc_error
from llmos.lib.serve import Server
from llmos.servers.memory.sessions.models import NoModels
from llmos.servers.memory.sessions.service import SessionsService
from llmos.servers.memory.sessions.sessions import Sessions
from llmos.servers.memory.sessions.store import SessionStore


class InProcess:
    """What a servicer sees of a call that came by no transport."""

    llmos_open = None  # as of a plain client


class Caller:
    """The service: in this process, or over a channel."""

    def __init__(self, service: SessionsService, channel: grpc.aio.Channel | None) -> None:
        self._service = service
        self._stub: Any = None if channel is None else SessionsStub(channel)

    async def call(self, name: str, request: Any) -> Any:
        if self._stub is None:
            return await getattr(self._service, name)(request, InProcess())
        try:
            return await getattr(self._stub, name)(request, timeout=10)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc

    async def export(self, id: str) -> list[Any]:
        request = pb.ExportSessionRequest(id=id)
        if self._stub is None:
            return [p async for p in self._service.ExportSession(request, InProcess())]
        try:
            return [piece async for piece in self._stub.ExportSession(request, timeout=10)]
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc


@pytest.fixture(params=["in process", "grpc", "kernel", "ports"])
async def caller(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Caller]:
    async with AsyncExitStack() as stack:
        sessions = Sessions(SessionStore(tmp_path / "sessions.db"), NoModels())
        stack.push_async_callback(sessions.close)
        service = SessionsService(sessions)
        if request.param == "in process":
            yield Caller(service, None)
            return
        kernel = "none"
        if request.param != "grpc":
            kernel = socket_address(tmp_path, "kernel")
            system = KernelServer()
            await system.start([kernel])
            stack.push_async_callback(system.stop, 0)
        server = Server("memory", ServerConfig(state_dir=tmp_path, kernel=kernel))
        server.add(add_SessionsServicer_to_server, service)
        await server.start()
        stack.push_async_callback(server.stop, 0)
        if request.param == "ports":
            port = Port(kernel, "client")
            await port.start()
            stack.push_async_callback(port.stop, 1)
            yield Caller(service, port.channel)
            return
        address = server.address if kernel == "none" else kernel
        yield Caller(service, await stack.enter_async_context(grpc.aio.insecure_channel(address)))


async def _talk(caller: Caller) -> None:
    session = pb.Session(id="a", system="Be kind.", ttl_s=3600)
    made = await caller.call("CreateSession", pb.CreateSessionRequest(session=session))
    assert (made.session.id, made.session.turns) == ("a", 0)
    turns = [pb.Turn(role="user", content=f"Question {i}?") for i in range(20)]
    request = pb.AppendTurnsRequest(id="a", turns=turns, request_id="once")
    for _ in range(2):
        assert [*(await caller.call("AppendTurns", request)).numbers] == [*range(1, 21)]


async def test_a_session_from_its_beginning_to_its_end(caller: Caller) -> None:
    await _talk(caller)
    pinned = pb.AppendTurnsRequest(
        id="a", turns=[pb.Turn(role="user", content="Call me Ann.", pinned=True)]
    )
    assert [*(await caller.call("AppendTurns", pinned)).numbers] == [21]
    update = pb.UpdateSessionRequest(id="a", summary="Questions.", ttl_s=0)
    after = (await caller.call("UpdateSession", update)).session
    assert (after.summary, after.ttl_s, after.system, after.turns) == (
        "Questions.",
        0,
        "Be kind.",
        21,
    )
    context = await caller.call("GetContext", pb.GetContextRequest(id="a", budget_tokens=100))
    assert context.tokens == sum(item.tokens for item in context.items) <= 100
    reasons = [item.reason for item in context.items]
    assert reasons[:2] == [pb.CONTEXT_REASON_PINNED, pb.CONTEXT_REASON_SUMMARY]
    assert reasons[-1] == pb.CONTEXT_REASON_PINNED
    assert set(reasons[2:-1]) == {pb.CONTEXT_REASON_RECENT}
    assert context.items[-2].number == 20
    assert len(context.notes) == 2
    pieces = await caller.export("a")
    assert (
        pieces[0].session == (await caller.call("GetSession", pb.GetSessionRequest(id="a"))).session
    )
    assert [piece.turn.number for piece in pieces[1:]] == [*range(1, 22)]
    assert pieces[21].turn.pinned and pieces[21].turn.created_unix_s > 1.7e9
    gone = pb.DeleteTurnsRequest(id="a", numbers=[1, 2, 1 << 63, 99])
    assert (await caller.call("DeleteTurns", gone)).deleted == 2
    assert (await caller.call("DeleteSession", pb.DeleteSessionRequest(id="a"))).deleted
    assert not (await caller.call("DeleteSession", pb.DeleteSessionRequest(id="a"))).deleted


async def test_pages(caller: Caller) -> None:
    for i in range(5):
        session = pb.Session(id=f"s{i}")
        await caller.call("CreateSession", pb.CreateSessionRequest(session=session))
    seen, after = list[str](), ""
    while True:
        request = pb.ListSessionsRequest(page_size=2, after=after)
        page = await caller.call("ListSessions", request)
        seen += [session.id for session in page.sessions]
        if not (after := page.next):
            break
    assert seen == [f"s{i}" for i in range(5)]


async def test_errors(caller: Caller) -> None:
    async def refused(error: type[LLMOSError], reason: str, name: str, request: Any) -> None:
        with pytest.raises(error) as caught:
            await caller.call(name, request)
        assert caught.value.reason == reason

    await _talk(caller)
    create = pb.CreateSessionRequest
    await refused(
        AlreadyExists, "SESSION_EXISTS", "CreateSession", create(session=pb.Session(id="a"))
    )
    await refused(
        InvalidArgument, "BAD_SESSION", "CreateSession", create(session=pb.Session(id="a/b"))
    )
    none = pb.AppendTurnsRequest(id="a")
    await refused(InvalidArgument, "BAD_TURN", "AppendTurns", none)
    small = pb.GetContextRequest(id="a", budget_tokens=5)
    await refused(OutOfRange, "BUDGET_TOO_SMALL", "GetContext", small)
    await refused(InvalidArgument, "BAD_BUDGET", "GetContext", pb.GetContextRequest(id="a"))
    many = pb.ListSessionsRequest(page_size=4_000_000_000)
    await refused(InvalidArgument, "BAD_PAGE", "ListSessions", many)
    for name, request in (
        ("GetSession", pb.GetSessionRequest(id="b")),
        ("GetContext", pb.GetContextRequest(id="b", budget_tokens=5)),
        ("UpdateSession", pb.UpdateSessionRequest(id="b", system="x")),
        ("DeleteTurns", pb.DeleteTurnsRequest(id="b", numbers=[1])),
        ("AppendTurns", pb.AppendTurnsRequest(id="b", turns=[pb.Turn(role="user", content="x")])),
    ):
        await refused(NotFound, "NO_SUCH_SESSION", name, request)
    with pytest.raises(NotFound):
        await caller.export("b")
