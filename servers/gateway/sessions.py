"""Chats with a memory: `session` on a chat request. Off unless `sessions` is configured.

The client sends only what is new. It is appended to the session, the model gets the context that
the memory server picks for it, and the answer is appended when it is whole: an answer that the
client did not wait for is not remembered.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import grpc

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.memory.v1 import sessions_pb2 as spb
from llmos.api.memory.v1 import sessions_pb2_grpc
from llmos.lib.errors import NotFound
from llmos.lib.rpc import from_rpc_error
from llmos.servers.gateway.backend import Backend, Call

_CALL_S = 60.0


class Generator(Protocol):
    """What answers a chat: a Backend, or a Backend that remembers."""

    def generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """See Backend."""


class Remembering:
    """Generates for one session. Also raises what Sessions raises."""

    def __init__(
        self, backend: Backend, channel: grpc.aio.Channel, session: str, budget: int
    ) -> None:
        """Generate by `backend`. budget: tokens of the context."""
        self._backend, self._session, self._budget = backend, session, budget
        self._stub: Any = sessions_pb2_grpc.SessionsStub(channel)

    async def generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Yield the pieces of an answer to what is in `request`, which is changed."""
        rid = dict(call.metadata).get("x-request-id", "")
        await self._begin(request, call)
        new = [
            spb.Turn(role=m.role, content=m.content)
            for m in request.chat.messages
            if m.role != "system" and m.content
        ]
        await self._append(new, rid and f"{rid}/question", call)
        context = await self._call(
            "GetContext", spb.GetContextRequest(id=self._session, budget_tokens=self._budget), call
        )
        del request.chat.messages[:]
        # Templates know one system message, at the beginning.
        head = [item.content for item in context.items if item.role == "system"]
        if head:
            request.chat.messages.add(role="system", content="\n\n".join(head))
        for item in context.items:
            if item.role != "system":
                request.chat.messages.add(role=item.role, content=item.content)
        said = ""
        async with aclosing(self._backend.generate(request, call)) as pieces:
            async for piece in pieces:
                said += piece.text
                if piece.finish_reason and said:
                    answer = spb.Turn(role="assistant", content=said)
                    await self._append([answer], rid and f"{rid}/answer", call)
                yield piece

    async def _begin(self, request: pb.GenerateRequest, call: Call) -> None:
        """Make the session, or give it the system text of the request."""
        system = "\n\n".join(m.content for m in request.chat.messages if m.role == "system")
        try:
            found = await self._call("GetSession", spb.GetSessionRequest(id=self._session), call)
        except NotFound:
            made = spb.Session(id=self._session, system=system, model=request.model)
            await self._call("CreateSession", spb.CreateSessionRequest(session=made), call)
            return
        update = spb.UpdateSessionRequest(id=self._session, model=request.model)
        if system:
            update.system = system
        if found.session.model != request.model or system not in ("", found.session.system):
            await self._call("UpdateSession", update, call)

    async def _append(self, turns: list[spb.Turn], request_id: str, call: Call) -> None:
        request = spb.AppendTurnsRequest(id=self._session, turns=turns, request_id=request_id)
        await self._call("AppendTurns", request, call)

    async def _call(self, name: str, request: Any, call: Call) -> Any:
        try:
            return await getattr(self._stub, name)(
                request, timeout=min(call.timeout_s, _CALL_S), metadata=call.metadata
            )
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from None
