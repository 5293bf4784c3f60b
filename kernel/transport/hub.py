"""Drives the core: feeds it events with the time, and carries out the actions it returns."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.core import Core
from llmos.kernel.core.events import Actions, Attached, Detached, Event, PortChange, Received, Tick
from llmos.kernel.record import Recorder
from llmos.lib.errors import LLMOSError
from llmos.lib.handlers import Handlers
from llmos.lib.host import host_id, new_instance
from llmos.lib.session import Session

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Sink:
    """Where a port's envelopes go, and how its stream is ended."""

    send: Callable[[Sequence[pb.Envelope]], None]
    close: Callable[[LLMOSError], None]


class Hub:
    """One per kernel process; everything runs on its event loop."""

    def __init__(self, core: Core) -> None:
        """Drive `core`."""
        self.core = core
        self.started = time.monotonic()
        self.watchers: set[Callable[[PortChange], None]] = set()
        self.recorder: Recorder | None = None
        self._sinks: dict[int, Sink] = {}
        self._next_port = 1
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def feed(self, event: Event) -> None:
        """Let the core handle an event now, and carry out what it says."""
        now, recorder = time.monotonic(), self.recorder
        record = recorder.describe(event, now) if recorder is not None else None
        actions = self.core.handle(event, now)
        if recorder is not None and record is not None:
            recorder.finish(record, actions)
        self._carry_out(actions)

    def _carry_out(self, actions: Actions) -> None:
        for port, envelopes in actions.frames.items():
            if (sink := self._sinks.get(port)) is not None:
                sink.send(envelopes)
        for port, err in actions.close:
            if (sink := self._sinks.pop(port, None)) is not None:
                log.warning("port disconnected", extra={"port": port, "reason": err.reason})
                sink.close(err)
        for change in actions.changes:
            for watcher in list(self.watchers):
                watcher(change)
        if actions.wake is not None and (self._timer is None or actions.wake < self._timer_at):
            self._arm(actions.wake)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        delay = max(0.0, at - time.monotonic()) + 0.001
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.feed(Tick())

    def attach(self, sink: Sink, own: bool = False) -> int:
        """Take a new stream; return its port number."""
        port = self._next_port
        self._next_port += 1
        self._sinks[port] = sink
        self.feed(Attached(port, own))
        return port

    def detach(self, port: int) -> None:
        """A stream has ended."""
        self._sinks.pop(port, None)
        self.feed(Detached(port))

    def close(self, err: LLMOSError) -> None:
        """End the streams of all attached processes."""
        for number, port in self.core.ports.items():
            if not port.own and (sink := self._sinks.get(number)) is not None:
                sink.close(err)


class OwnPort:
    """A port in the kernel's own process: for plain gRPC clients, and for the kernel's services."""

    def __init__(self, hub: Hub, name: str, host: str = "") -> None:
        """Attach."""
        self._hub = hub
        self.services = hub.core.scheduler.services
        self._out: list[pb.Envelope] = []
        self.handlers = Handlers()
        self.session = Session(
            self._emit, window=hub.core.limits.initial_window, serve=self.handlers.start
        )
        self.port = hub.attach(Sink(self._take, self._closed), own=True)
        hello = pb.Hello(protocol=1, name=name, instance=new_instance(), host=host)
        self._emit(pb.Envelope(kind=pb.KIND_HELLO, hello=hello))

    def _emit(self, envelope: pb.Envelope) -> None:
        # Never feed the core from within: it may be handling an event right now.
        if not self._out:
            self.session.loop().call_soon(self._flush)
        self._out.append(envelope)

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._hub.feed(Received(self.port, out))

    def _take(self, envelopes: Sequence[pb.Envelope]) -> None:
        for envelope in envelopes:  # those about the port itself have call id 0, which is no call
            self.session.receive(envelope)

    def _closed(self, err: LLMOSError) -> None:
        raise RuntimeError(f"the core refused the kernel's own port: {err}")

    def export(self, service: str, keys: Sequence[str], files: Sequence[bytes]) -> None:
        """Export a service of the kernel's own."""
        export = pb.Export(service=service, keys=keys, files=files)
        self._emit(pb.Envelope(call=0, kind=pb.KIND_EXPORT, export=export))


HOST = host_id()
