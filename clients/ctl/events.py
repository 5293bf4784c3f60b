"""`llmos-ctl kernel events` and `publish`: what processes tell each other."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl.progress import note
from llmos.clients.ctl.session import QUICK_S, Session, command

if TYPE_CHECKING:
    from llmos.api.kernel.v1 import events_pb2

_AGAIN_S = 0.5


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""

    @command(
        app,
        examples=["llmos-ctl kernel events", "llmos-ctl kernel events 'model.*' 'process.*'"],
    )
    def events(
        session: Session,
        patterns: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[PATTERN]...", help="Topics; * any characters, ? one. [default: *]"
            ),
        ] = None,
        count: Annotated[int, typer.Option(min=0, help="End after so many; 0 = never.")] = 0,
    ) -> None:
        """Print events as they come, until Ctrl-C. JSON: one line per event."""
        try:
            _follow(session, patterns or ["*"], count)
        except KeyboardInterrupt:
            return  # the usual end

    @command(app, examples=["llmos-ctl kernel publish deploy.done '{\"version\": 7}'"])
    def publish(
        session: Session,
        topic: Annotated[str, typer.Argument(help="Dotted name, e.g. deploy.done.")],
        payload: Annotated[str, typer.Argument(help="Text, JSON by custom.")] = "",
    ) -> None:
        """Give an event to everybody who subscribed to its topic."""
        from llmos.api.kernel.v1 import events_pb2, events_pb2_grpc

        stub = session.kernel(events_pb2_grpc.EventsStub)
        request = events_pb2.PublishRequest(topic=topic, payload=payload.encode())
        receivers = stub.Publish(request, timeout=session.limit(QUICK_S)).receivers
        people = {0: "Nobody listens to it", 1: "One subscriber has it"}
        said = people.get(receivers, f"{receivers} subscribers have it")
        session.out.say(f"{topic}: {said}.", {"topic": topic, "receivers": receivers})


def _follow(session: Session, patterns: list[str], count: int) -> None:
    name_of = _names(session)
    for number, event in enumerate(_subscribe(session, patterns), 1):
        content = decode(event.payload)
        publisher = name_of(event.publisher)
        if session.json:
            line = {"topic": event.topic, **content, "publisher": publisher, "id": event.id}
            print(json.dumps({**line, "missed": event.missed}, ensure_ascii=False), flush=True)
        else:
            if event.missed:
                note(f"  {event.missed} events were missed: this reader is too slow")
            stamp = time.strftime("%H:%M:%S")
            print(f"{stamp}  {event.topic:<20}  {people(content)}  ({publisher})", flush=True)
        if number == count:
            return


def _subscribe(session: Session, patterns: list[str]) -> Iterator[events_pb2.SubscribeResponse]:
    """Yield events, also of the next kernel when this one dies."""
    import grpc

    from llmos.api.kernel.v1 import events_pb2, events_pb2_grpc
    from llmos.lib.errors import Unavailable
    from llmos.lib.rpc import from_rpc_error

    request = events_pb2.SubscribeRequest(patterns=patterns)
    while True:
        stub = session.kernel(events_pb2_grpc.EventsStub)
        stream = stub.Subscribe(request, timeout=session.limit(), wait_for_ready=True)
        try:
            stream.initial_metadata()  # from here on nothing is missed
            note(f"  listening to {' '.join(patterns)}")
            yield from stream
        except grpc.RpcError as exc:
            error = from_rpc_error(exc)
            if not isinstance(error, Unavailable):
                raise error from exc
            note("  the kernel went away; events may have been missed")
        finally:
            stream.cancel()
        time.sleep(_AGAIN_S)


def _names(session: Session) -> Callable[[str], str]:
    """Return what turns a publisher's instance into its name; asks the kernel for new ones."""
    import grpc

    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    known: dict[str, str] = {}

    def name_of(instance: str) -> str:
        if instance not in known:
            stub = session.kernel(admin_pb2_grpc.AdminStub)
            try:
                reply = stub.ListPorts(admin_pb2.ListPortsRequest(), timeout=session.limit(QUICK_S))
            except grpc.RpcError:  # the kernel goes away: the event is worth more than the name
                return instance[:8]
            known.update({port.instance: port.name for port in reply.ports})
            known.setdefault(instance, "a plain client" if ":" in instance else instance[:8])
        return known[instance]

    return name_of


def decode(payload: bytes) -> dict[str, Any]:
    """Return `payload` as JSON or text, or what is neither as `payload_base64`."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(payload).decode()}
    try:
        return {"payload": json.loads(text)}
    except ValueError:
        return {"payload": text}


def people(content: dict[str, Any]) -> str:
    """Return a decoded payload for people, on one line: an object as `name=value` pairs."""
    payload = content.get("payload", content.get("payload_base64"))
    if isinstance(payload, dict):
        pairs = ((k, v) for k, v in payload.items() if k != "at")
        return " ".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in pairs)
    text = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
    return "".join(c if c.isprintable() else " " for c in text)
