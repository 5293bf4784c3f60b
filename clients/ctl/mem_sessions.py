"""Sessions: what conversations the OS remembers, what a model would see, and forgetting them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl.output import as_value, when
from llmos.clients.ctl.session import QUICK_S, Session, command

if TYPE_CHECKING:
    from llmos.api.memory.v1 import sessions_pb2

app = typer.Typer(help="Conversations that outlive their processes.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(help="The session's id.")]


def _stub(session: Session) -> Any:
    from llmos.api.memory.v1 import sessions_pb2_grpc

    return session.kernel(sessions_pb2_grpc.SessionsStub)


@command(app, name="list", examples=["llmos-ctl mem sessions list"], watch=True)
def list_(session: Session) -> None:
    """List sessions, by id."""
    from llmos.api.memory.v1 import sessions_pb2 as pb

    found: list[sessions_pb2.Session] = []
    after = ""
    while True:
        request = pb.ListSessionsRequest(page_size=1000, after=after)
        page = _stub(session).ListSessions(request, timeout=session.limit(QUICK_S))
        found += page.sessions
        if not (after := page.next):
            break
    rows = [
        [
            s.id,
            str(s.turns),
            s.model or "-",
            f"{s.ttl_s} s" if s.ttl_s else "-",
            when(s.used_unix_s),
            s.system[:60],
        ]
        for s in found
    ]
    columns = ["SESSION", "TURNS", "MODEL", "TTL", "USED", "SYSTEM"]
    session.out.rows(columns, rows, [as_value(s) for s in found])


@command(app, examples=["llmos-ctl mem sessions create shop --system 'Be brief.' --model smollm2"])
def create(
    session: Session,
    id: Id,
    system: Annotated[str, typer.Option(help="Pinned text; every context begins with it.")] = "",
    model: Annotated[str, typer.Option(help="Model whose tokens count.")] = "",
    embedder: Annotated[str, typer.Option(help="Model that finds older turns by meaning.")] = "",
    ttl: Annotated[int, typer.Option(min=0, help="Forget so many seconds after its use.")] = 0,
) -> None:
    """Make a session. Making it again changes nothing."""
    from llmos.api.memory.v1 import sessions_pb2 as pb

    wanted = pb.Session(id=id, system=system, model=model, embedder=embedder, ttl_s=ttl)
    request = pb.CreateSessionRequest(session=wanted)
    made = _stub(session).CreateSession(request, timeout=session.limit(QUICK_S)).session
    session.out.say(f"Session {made.id} has {made.turns} turns.", as_value(made))


@command(app, examples=["llmos-ctl mem sessions append shop 'My name is Ann.' --pin"])
def append(
    session: Session,
    id: Id,
    text: Annotated[str, typer.Argument(help="What was said.")],
    role: Annotated[str, typer.Option(help="Who said it: user, assistant, system, tool.")] = "user",
    pin: Annotated[bool, typer.Option("--pin", help="Make it part of every context.")] = False,
) -> None:
    """Append one turn."""
    from llmos.api.memory.v1 import sessions_pb2 as pb

    turn = pb.Turn(role=role, content=text, pinned=pin)
    request = pb.AppendTurnsRequest(id=id, turns=[turn])
    answer = _stub(session).AppendTurns(request, timeout=session.limit(QUICK_S))
    session.out.say(f"Turn {answer.numbers[0]} of session {id}.", as_value(answer))


@command(app, examples=["llmos-ctl mem sessions context shop --budget 512 --query 'my name'"])
def context(
    session: Session,
    id: Id,
    budget: Annotated[int, typer.Option(min=1, help="Tokens it may have.")] = 1024,
    query: Annotated[str, typer.Option(help="What to recall for. [default: newest turn]")] = "",
) -> None:
    """Show what a model would see, and why each part is there."""
    from llmos.api.memory.v1 import sessions_pb2 as pb

    request = pb.GetContextRequest(id=id, budget_tokens=budget, query=query)
    answer = _stub(session).GetContext(request, timeout=session.limit())
    rows = [
        [
            str(item.number or "-"),
            pb.ContextReason.Name(item.reason).removeprefix("CONTEXT_REASON_").lower(),
            f"{item.score:.2f}" if item.score else "-",
            str(item.tokens),
            item.role,
            item.content[:100],
        ]
        for item in answer.items
    ]
    columns = ["TURN", "WHY", "SCORE", "TOKENS", "ROLE", "TEXT"]
    session.out.rows(columns, rows, as_value(answer))
    if not session.json:
        for note in answer.notes:
            typer.echo(note, err=True)


@command(app, examples=["llmos-ctl mem sessions export shop shop.jsonl"])
def export(
    session: Session,
    id: Id,
    path: Annotated[Path | None, typer.Argument(help="File to write. [default: stdout]")] = None,
) -> None:
    """Write all that is kept of a session: its settings, then a turn on each line, as JSON."""
    from llmos.api.memory.v1 import sessions_pb2 as pb

    request = pb.ExportSessionRequest(id=id)
    pieces = _stub(session).ExportSession(request, timeout=session.limit())
    lines = [
        json.dumps(as_value(getattr(p, p.WhichOneof("piece"))), ensure_ascii=False) for p in pieces
    ]
    if path is None:
        print("\n".join(lines))
        return
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    turns = len(lines) - 1
    session.out.say(f"{turns} turns are in {path}.", {"path": str(path), "turns": turns})


@command(app, examples=["llmos-ctl mem sessions forget shop 3 4"])
def forget(
    session: Session,
    id: Id,
    numbers: Annotated[list[int], typer.Argument(min=1, help="Turns, by number.")],
) -> None:
    """Delete turns, also from the index and the files."""
    from llmos.api.memory.v1 import sessions_pb2 as pb

    request = pb.DeleteTurnsRequest(id=id, numbers=numbers)
    answer = _stub(session).DeleteTurns(request, timeout=session.limit(QUICK_S))
    session.out.say(f"{answer.deleted} turns of session {id} are deleted.", as_value(answer))


@command(app, examples=["llmos-ctl mem sessions delete shop"])
def delete(session: Session, id: Id) -> None:
    """Delete a session with all its turns, also from the index and the files."""
    from llmos.api.memory.v1 import sessions_pb2 as pb

    request = pb.DeleteSessionRequest(id=id)
    answer = _stub(session).DeleteSession(request, timeout=session.limit(QUICK_S))
    said = f"Session {id} is deleted." if answer.deleted else f"There is no session {id}."
    session.out.say(said, as_value(answer))
