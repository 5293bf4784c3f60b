"""Chats in a session: what the model is shown and what is remembered, over a real memory server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from echo_execution import EchoBackend, EchoModel

from llmos.api.memory.v1.sessions_pb2_grpc import add_SessionsServicer_to_server
from llmos.lib.config import ServerConfig
from llmos.lib.serve import Server
from llmos.servers.gateway.app import build
from llmos.servers.gateway.config import GatewayConfig
from llmos.servers.memory.sessions.models import NoModels
from llmos.servers.memory.sessions.service import SessionsService
from llmos.servers.memory.sessions.sessions import Sessions
from llmos.servers.memory.sessions.store import SessionStore


@pytest.fixture
async def remembering(tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Sessions]]:
    async with AsyncExitStack() as stack:
        sessions = Sessions(SessionStore(tmp_path / "sessions.db"), NoModels())
        stack.push_async_callback(sessions.close)
        server = Server("memory", ServerConfig(state_dir=tmp_path, kernel="none"))
        server.add(add_SessionsServicer_to_server, SessionsService(sessions))
        await server.start()
        stack.push_async_callback(server.stop, 0)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        app = build(EchoBackend(EchoModel()), GatewayConfig(sessions=True), lambda name: channel)
        client = httpx.AsyncClient(
            base_url="http://127.0.0.1", transport=httpx.ASGITransport(app), timeout=30
        )
        yield await stack.enter_async_context(client), sessions


async def ask(http: httpx.AsyncClient, *turns: tuple[str, str], **more: Any) -> httpx.Response:
    messages = [{"role": role, "content": content} for role, content in turns]
    body = {"model": "params", "messages": messages, "session": "ann", **more}
    return await http.post("/v1/chat/completions", json=body)


def shown(reply: httpx.Response) -> list[tuple[str, str]]:
    """Return what the model was shown: it answers with its request."""
    assert reply.status_code == 200, reply.text
    request = json.loads(reply.json()["choices"][0]["message"]["content"])
    return [(m["role"], m["content"][:40]) for m in request["chat"]["messages"]]


async def test_a_chat_goes_on_where_it_was(
    remembering: tuple[httpx.AsyncClient, Sessions],
) -> None:
    http, sessions = remembering
    first = await ask(http, ("system", "Be kind."), ("user", "My name is Ann."))
    assert shown(first) == [("system", "Be kind."), ("user", "My name is Ann.")]
    second = await ask(http, ("user", "What is my name?"))
    assert [role for role, _ in shown(second)] == ["system", "user", "assistant", "user"]
    assert shown(second)[1] == ("user", "My name is Ann.")
    await sessions.update("local", "ann", {"summary": "Ann came."})
    third = await ask(http, ("system", "Be brief."), ("user", "Bye."), stream=False)
    assert shown(third)[0] == ("system", "Be brief.\n\nAnn came.")
    turns = [turn async for turn in sessions.export("local", "ann")]
    assert [turn.role for turn in turns] == ["user", "assistant"] * 3
    assert turns[1].content == first.json()["choices"][0]["message"]["content"]


async def test_a_stream_is_remembered_and_an_error_is_not(
    remembering: tuple[httpx.AsyncClient, Sessions],
) -> None:
    http, sessions = remembering
    streamed = await ask(http, ("user", "Hello there."), stream=True)
    assert "[DONE]" in streamed.text
    assert (await sessions.get("local", "ann")).turns == 2
    failed = await ask(http, ("user", "Hello?"), model="down")
    assert failed.status_code == 503
    turns = [turn async for turn in sessions.export("local", "ann")]
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]


async def test_bad_sessions_are_refused(
    remembering: tuple[httpx.AsyncClient, Sessions],
) -> None:
    http, sessions = remembering
    for session in ("a b", "x" * 129, "", 7):
        reply = await ask(http, ("user", "hi"), session=session)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "session")
    reply = await ask(http, ("user", "hi"), n=2)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "n")
    assert await sessions.page("local") == []


async def test_sessions_are_off_by_default() -> None:
    app = build(EchoBackend(EchoModel()), GatewayConfig())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(base_url="http://127.0.0.1", transport=transport) as http:
        reply = await ask(http, ("user", "hi"))
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "session")
        assert "off" in reply.json()["error"]["message"]
