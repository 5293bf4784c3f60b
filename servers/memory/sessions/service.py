"""The gRPC face of sessions: converts and delegates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from llmos.api.memory.v1 import sessions_pb2 as pb
from llmos.api.memory.v1 import sessions_pb2_grpc
from llmos.lib import call
from llmos.servers.memory.sessions.sessions import Sessions
from llmos.servers.memory.sessions.words import Session, Settings, Turn

_SETTINGS = ("system", "model", "embedder", "ttl_s", "summary")


class SessionsService(sessions_pb2_grpc.SessionsServicer):
    """Sessions, each of the tenant that calls."""

    def __init__(self, sessions: Sessions) -> None:
        """Serve `sessions`."""
        self._sessions = sessions

    async def CreateSession(
        self, request: pb.CreateSessionRequest, context: Any
    ) -> pb.CreateSessionResponse:
        """See the proto."""
        wanted = request.session
        settings = Settings(**{name: getattr(wanted, name) for name in _SETTINGS})
        made = await self._sessions.create(call.tenant(context), wanted.id, settings)
        return pb.CreateSessionResponse(session=_session(made))

    async def UpdateSession(
        self, request: pb.UpdateSessionRequest, context: Any
    ) -> pb.UpdateSessionResponse:
        """See the proto."""
        changes = {n: getattr(request, n) for n in _SETTINGS if request.HasField(n)}  # type: ignore[arg-type]
        after = await self._sessions.update(call.tenant(context), request.id, changes)
        return pb.UpdateSessionResponse(session=_session(after))

    async def AppendTurns(
        self, request: pb.AppendTurnsRequest, context: Any
    ) -> pb.AppendTurnsResponse:
        """See the proto."""
        turns = [Turn(t.role, t.content, t.pinned) for t in request.turns]
        tenant = call.tenant(context)
        numbers = await self._sessions.append(tenant, request.id, turns, request.request_id)
        return pb.AppendTurnsResponse(numbers=numbers)

    async def GetContext(
        self, request: pb.GetContextRequest, context: Any
    ) -> pb.GetContextResponse:
        """See the proto."""
        tenant = call.tenant(context)
        made = await self._sessions.context(
            tenant, request.id, request.budget_tokens, request.query
        )
        return pb.GetContextResponse(
            items=[
                pb.ContextItem(
                    role=item.role,
                    content=item.content,
                    reason=pb.ContextReason.ValueType(item.reason.value),
                    number=item.number,
                    tokens=item.tokens,
                    score=item.score,
                )
                for item in made.items
            ],
            tokens=sum(item.tokens for item in made.items),
            notes=made.notes,
        )

    async def GetSession(
        self, request: pb.GetSessionRequest, context: Any
    ) -> pb.GetSessionResponse:
        """See the proto."""
        found = await self._sessions.get(call.tenant(context), request.id)
        return pb.GetSessionResponse(session=_session(found))

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Any
    ) -> pb.ListSessionsResponse:
        """See the proto."""
        size = request.page_size or 100
        found = await self._sessions.page(call.tenant(context), request.after, size)
        return pb.ListSessionsResponse(
            sessions=[_session(session) for session in found],
            next=found[-1].id if len(found) == size else "",
        )

    async def ExportSession(
        self, request: pb.ExportSessionRequest, context: Any
    ) -> AsyncIterator[pb.ExportSessionResponse]:
        """See the proto."""
        tenant = call.tenant(context)
        found = await self._sessions.get(tenant, request.id)
        yield pb.ExportSessionResponse(session=_session(found))
        async for turn in self._sessions.export(tenant, request.id):
            yield pb.ExportSessionResponse(
                turn=pb.Turn(
                    number=turn.number,
                    role=turn.role,
                    content=turn.content,
                    pinned=turn.pinned,
                    created_unix_s=turn.created,
                )
            )

    async def DeleteTurns(
        self, request: pb.DeleteTurnsRequest, context: Any
    ) -> pb.DeleteTurnsResponse:
        """See the proto."""
        tenant = call.tenant(context)
        # No turn has a number that SQLite's integers do not reach.
        numbers = [number for number in request.numbers if number < 1 << 63]
        deleted = await self._sessions.delete_turns(tenant, request.id, numbers)
        return pb.DeleteTurnsResponse(deleted=deleted)

    async def DeleteSession(
        self, request: pb.DeleteSessionRequest, context: Any
    ) -> pb.DeleteSessionResponse:
        """See the proto."""
        deleted = await self._sessions.delete(call.tenant(context), request.id)
        return pb.DeleteSessionResponse(deleted=deleted)


def _session(session: Session) -> pb.Session:
    return pb.Session(
        id=session.id,
        turns=session.turns,
        created_unix_s=session.created,
        used_unix_s=session.used,
        **{name: getattr(session.settings, name) for name in _SETTINGS},
    )
