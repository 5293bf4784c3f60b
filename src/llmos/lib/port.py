"""The attachment of this process to the kernel; see port.proto for the wire.

    port = Port("unix:/run/user/1000/llmos/kernel.sock", "my-program")
    await port.start()
    stub = execution_pb2_grpc.ExecutionStub(port.channel)

When the kernel dies the port attaches again, exports again, and opens again every call that may
be (idempotent ones without a reply so far, and streams with a resume log); the rest fail with
UNAVAILABLE and a reason that says whether they may have run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib import methods
from llmos.lib.cargo import unpack
from llmos.lib.channel import PortChannel
from llmos.lib.errors import FailedPrecondition, LLMOSError, Unavailable
from llmos.lib.h2.client import connect
from llmos.lib.h2.stream import Stream
from llmos.lib.handlers import Handlers
from llmos.lib.host import host_id, new_instance
from llmos.lib.outbox import Outbox
from llmos.lib.route import string_field
from llmos.lib.session import Emit, Session
from llmos.lib.status import from_wire, make_status
from llmos.lib.vouch import vouch

log = logging.getLogger(__name__)

PROTOCOL = 1
ATTACH = "/llmos.api.kernel.v1.Port/Attach"
MAX_BACKOFF_S = 0.5
PATIENCE_S = 30.0  # how long calls wait for a kernel that is away


@dataclass(frozen=True)
class ExportSpec:
    """Declaration of a service that this port serves; see Export in port.proto."""

    service: str
    keys: Sequence[str] = ("",)
    credits: int = 0
    fault_handler: bool = False
    stall_ms: int = 0


class Port:
    """One attachment. Reconnects by itself; `channel` is a grpc.aio.Channel for generated stubs."""

    def __init__(self, address: str, name: str, *, credential: bytes = b"") -> None:
        """Prepare; nothing is opened before `start`."""
        self.address = address
        self.name = name
        self.instance = new_instance()
        self.welcome: pb.Welcome | None = None
        self._credential = credential
        self._outbox = Outbox()
        self._handlers = Handlers()
        self._session = Session(self._outbox.put, serve=self._handlers.start)
        self._outbox.on_full = self._session.set_full
        self.channel: grpc.aio.Channel = PortChannel(self._session)
        self._exports: dict[str, ExportSpec] = {}
        self._acks: dict[int, asyncio.Future[pb.Envelope]] = {}
        self._next_ack = 1
        self._attached = asyncio.Event()
        self._refused: LLMOSError | None = None
        self._drained = asyncio.Event()
        self._stopping = False
        self._main: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._vouching: asyncio.Task[None] | None = None

    def serve(self, spec: ExportSpec, handlers: dict[str, Any]) -> None:
        """Serve a service's methods (by bare name); before `start`."""
        self._handlers.add(spec.service, handlers)
        self._exports[spec.service] = spec

    async def export(self, spec: ExportSpec) -> None:
        """Change keys or credits of a served service; returns when the kernel acknowledged.

        Raises the error with which the kernel refused it.
        """
        self._exports[spec.service] = spec
        await self._attached.wait()
        await self._send_export(spec)

    async def set_keys(self, service: str, keys: Sequence[str]) -> None:
        """Change the keys under which a served service is exported; as `export`."""
        await self.export(replace(self._exports[service], keys=tuple(keys)))

    def progress(self) -> None:
        """Tell the kernel that calls served here make progress; see llmos.lib.call.progress."""
        if self._attached.is_set():
            self._session.progress()

    async def start(self, timeout_s: float = PATIENCE_S) -> None:
        """Attach; returns when the kernel has acknowledged the exports.

        Raises Unavailable KERNEL_UNREACHABLE after `timeout_s`, or the kernel's refusal.
        """
        loop = asyncio.get_running_loop()
        self._main = loop.create_task(self._run())
        if self._stalls():
            self._vouching = loop.create_task(vouch(self._session, self._stalls))
        waiter = asyncio.ensure_future(self._attached.wait())
        done, _ = await asyncio.wait(
            {waiter, self._main}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        if waiter in done and self._refused is None:
            return
        waiter.cancel()
        await self._close()
        raise self._refused or Unavailable(
            "KERNEL_UNREACHABLE",
            f"No kernel answers at {self.address}; is LLM OS running? (`llmos-ctl up` starts it)",
        )

    async def stop(self, grace_s: float = 10.0) -> None:
        """Drain (no new calls; running handlers finish for `grace_s`) and detach."""
        self._stopping = True
        if self._attached.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(grace_s):
                    self._outbox.put(pb.Envelope(kind=pb.KIND_DRAIN))
                    await self._drained.wait()
                    while self._handlers.running:
                        await asyncio.wait(set(self._handlers.running))
                    await self._outbox.flushed()
        await self._close()

    async def _close(self) -> None:
        self._stopping = True
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        if self._vouching is not None:
            self._vouching.cancel()
            await asyncio.gather(self._vouching, return_exceptions=True)
        self._handlers.answers.close()
        self._session.close(Unavailable("PORT_CLOSED", "The port to the kernel was closed."))

    def _stalls(self) -> dict[str, float]:
        return {e.service: e.stall_ms / 1000 for e in self._exports.values() if e.stall_ms}

    # Attaching, again and again.

    async def _run(self) -> None:
        delay = 0.02
        while not self._stopping:
            self._wait_for_kernel()
            try:
                await self._attach()
                delay = 0.02
            except LLMOSError as err:
                if not isinstance(err, Unavailable):
                    self._refused = err
                    self._session.close(err)
                    self._attached.set()
                    log.error("the kernel refuses this port", extra={"reason": err.reason})
                    return
                log.debug("no kernel: %s", err)
            finally:
                self._lost()
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = min(delay * 2, MAX_BACKOFF_S)

    def _wait_for_kernel(self) -> None:
        if self._patience is None:
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(PATIENCE_S, self._give_up)

    def _give_up(self) -> None:
        self._patience = None
        err = Unavailable(
            "KERNEL_UNREACHABLE", f"No kernel answered at {self.address} for {PATIENCE_S:.0f} s."
        )
        for stream in self._session.clients():
            stream.fail(make_status(err))

    async def _attach(self) -> None:
        connection = await connect(self.address)
        try:
            await self._attached_over(connection.open(ATTACH, "kernel"))
        finally:
            connection.close()

    async def _attached_over(self, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        welcome: asyncio.Future[bytes] = loop.create_future()

        def end(code: int, message: str, trailers: list[tuple[str, str | bytes]]) -> None:
            self._outbox.stop()
            if not ended.done():
                gone = Unavailable("KERNEL_LOST", "The stream to the kernel ended.")
                ended.set_exception(from_wire(code, message, trailers) if code else gone)

        def first(message: bytes) -> None:
            stream.on_view = self._receive
            welcome.set_result(message)

        stream.on_end, stream.on_message = end, first
        hello = pb.Hello(
            protocol=PROTOCOL,
            name=self.name,
            instance=self.instance,
            pid=os.getpid(),
            host=host_id(),
            credential=self._credential,
        )
        frame = pb.Frame(envelopes=[pb.Envelope(kind=pb.KIND_HELLO, hello=hello)])
        stream.send(frame.SerializeToString())
        try:
            await _first_of(ended, welcome)
            await self._attached_to(pb.Frame.FromString(welcome.result()), stream, ended)
        finally:
            self._outbox.stop()
            ended.cancel()
            stream.reset()

    async def _attached_to(
        self, frame: pb.Frame, stream: Stream, ended: asyncio.Future[None]
    ) -> None:
        if len(frame.envelopes) != 1 or frame.envelopes[0].kind != pb.KIND_WELCOME:
            raise FailedPrecondition("PROTOCOL_VERSION", "This is no LLM OS kernel of our time.")
        self.welcome = frame.envelopes[0].welcome
        self._session.window = self.welcome.initial_window

        def at_once(envelope: pb.Envelope) -> None:
            stream.send(pb.Frame(envelopes=[envelope]).SerializeToString())

        # Past the outbox: what is in there goes out when the calls before it are open again.
        exports = (self._send_export(spec, at_once) for spec in self._exports.values())
        announced = asyncio.gather(*exports)
        try:
            await _first_of(ended, announced)
            announced.result()
        finally:
            announced.cancel()
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._reopen(stream)
        self._attached.set()
        log.info("attached", extra={"kernel": self.address, "port": self.welcome.port})
        await ended

    def _lost(self) -> None:
        """Forget what belonged to the kernel that is gone."""
        self._attached.clear()
        self._outbox.hold()
        self._drained.set() if self._stopping else self._drained.clear()
        for future in self._acks.values():
            future.cancel()
        self._acks.clear()
        for served in self._session.servers():
            self._session.abandon(served)
        for stream in self._session.clients():
            if not stream.resumable() and not self._outbox.holds(stream.id):
                stream.fail(make_status(_lost_call(stream.replayable and not stream.once)))

    def _reopen(self, stream: Stream) -> None:
        """Send what nobody has seen, then open again what was open at the last kernel.

        In this order, because ids only grow; and answers to what this kernel has sent already.
        """
        waiting = self._outbox.restart()
        unseen = {q.call for q in waiting if q.kind == pb.KIND_OPEN}
        for queued in waiting:
            if queued.call in unseen or (queued.call and not queued.call & 1):
                self._outbox.put_again(queued)
        self._outbox.start(stream)
        self._open_again(unseen)

    def _open_again(self, unseen: set[int]) -> None:
        for stream in self._session.clients():
            if stream.id in unseen or not stream.kept:
                continue
            envelopes, stream.kept, stream.kept_bytes = stream.kept, [], 0
            self._session.renumber(stream)
            stream.window = self._session.window
            if stream.once:
                envelopes = [_question(envelopes[0])]
            envelopes[0].cookie = bytes(stream.cookie)
            for envelope in envelopes:
                envelope.call = stream.id
                stream.put(envelope, len(envelope.payload))

    async def _send_export(self, spec: ExportSpec, send: Emit | None = None) -> None:
        number, self._next_ack = self._next_ack, self._next_ack + 1
        future: asyncio.Future[pb.Envelope] = asyncio.get_running_loop().create_future()
        self._acks[number] = future
        export = pb.Export(
            service=spec.service,
            keys=spec.keys,
            credits=spec.credits,
            fault_handler=spec.fault_handler,
            stall_ms=spec.stall_ms,
            files=methods.files_of(spec.service),
        )
        (send or self._outbox.put)(pb.Envelope(call=number, kind=pb.KIND_EXPORT, export=export))
        answer = await future
        status = answer.status
        if answer.HasField("status") and status.code:
            raise from_wire(
                status.code, status.message, [(t.key, t.value) for t in status.trailers]
            )

    def _receive(self, data: memoryview) -> None:
        receive = self._session.receive
        for envelope in unpack(data):
            kind = envelope.kind
            if kind == pb.KIND_EXPORTED:
                future = self._acks.pop(envelope.call, None)
                if future is not None and not future.done():
                    future.set_result(envelope)
            elif kind == pb.KIND_DRAIN:
                self._drained.set()
            else:
                receive(envelope)


async def _first_of(ended: asyncio.Future[None], other: asyncio.Future[Any]) -> None:
    """Wait for `other`. Raises what ended the stream, where that comes first."""
    await asyncio.wait({ended, other}, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        ended.result()


def _question(first: pb.Envelope) -> pb.Envelope:
    """Return the OPEN that asks what became of a call that may have run: without its request."""
    opened = first.open
    if not opened.key and (route := methods.lookup(opened.method).route):
        opened.key = string_field(first.payload, route, cut=True)
    return pb.Envelope(kind=pb.KIND_OPEN, flags=pb.FLAG_HALF_CLOSE, open=opened)


def _lost_call(idempotent: bool) -> Unavailable:
    if idempotent:
        return Unavailable(
            "KERNEL_LOST",
            "The kernel went away in the middle of the reply; the call may be made again.",
        )
    return Unavailable(
        "KERNEL_LOST_MAY_HAVE_RUN",
        "The kernel went away; the call may or may not have run: look before you repeat it.",
    )
