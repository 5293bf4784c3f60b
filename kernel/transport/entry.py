"""The generic entry: any gRPC stub, pointed at the kernel, reaches every exported service.

Nothing of a message is parsed here; bytes go to the core as the calls of the kernel's own port.
"""

from __future__ import annotations

from collections import deque

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.transport.hub import HOST, OwnPort
from llmos.lib import cargo
from llmos.lib.errors import Cancelled, Internal, LLMOSError, ResourceExhausted
from llmos.lib.h2.stream import Stream as HttpStream
from llmos.lib.metadata import apply_metadata
from llmos.lib.methods import UNKNOWN, Method
from llmos.lib.session import metadata_from_wire
from llmos.lib.status import make_status, to_wire
from llmos.lib.stream import CHUNK, HALF_CLOSE, MESSAGE, MORE, ClientStream

_GONE = make_status(Cancelled("CANCELLED", "The client cancelled the call or went away."))
_NO_REPLY = make_status(Internal("NO_REPLY", "The server ended without a reply."))
_BACKLOG = 1 << 20  # request bytes kept from which on the client is held back


class Entry:
    """Takes every call that is not an attachment."""

    def __init__(self, port: OwnPort) -> None:
        """Make the calls through `port`."""
        self._port = port
        self._services = port.services

    def accept(self, http: HttpStream) -> None:
        """Take a call."""
        service = self._services.get(http.path[1:].rpartition("/")[0])
        method = service.methods.get(http.path, UNKNOWN) if service is not None else UNKNOWN
        opened = pb.Open(method=http.path, caller=f"grpc:{http.connection.peer}")
        if http.connection.peer == "unix:":
            opened.caller_host = HOST
        if http.timeout_s is not None:
            opened.timeout_us = max(1, int(http.timeout_s * 1e6))
        try:
            if http.metadata:
                apply_metadata(opened, http.metadata)
        except LLMOSError as err:
            http.finish(*to_wire(err))
            return
        EntryCall(self._port, opened, http, method)


class EntryCall(ClientStream):
    """One call: what comes on one side leaves on the other at once, as far as there is room."""

    __slots__ = ("_backlog", "_backlog_bytes", "_http", "_one", "_one_reply")

    def __init__(self, port: OwnPort, opened: pb.Open, http: HttpStream, method: Method) -> None:
        """Wait for the first message: it may hold the key that the call is routed by."""
        super().__init__(port.session, 0, opened, False)
        self._http = http
        self._one = method is not UNKNOWN and not method.client_streaming
        self._one_reply = method is not UNKNOWN and not method.server_streaming
        self._backlog: deque[tuple[memoryview, int]] = deque()
        self._backlog_bytes = 0
        http.on_message = self._request
        http.on_half_close = self._no_more
        http.on_end = self._gone
        http.on_room = self._room_there
        http.on_fault = self._fault

    # From the client.

    def _request(self, message: bytes) -> None:
        if not self.begun:
            sent = self._open(message, self._one)
            if sent < len(message):
                self._keep(memoryview(message)[sent:], HALF_CLOSE if self._one else 0)
        elif not self._one:
            self._keep(memoryview(message), 0)

    def _open(self, message: bytes | None, half_close: bool) -> int:
        self.session.renumber(self)  # only now: ids only grow
        return self.start(message, half_close)

    def _no_more(self) -> None:
        if not self.begun:
            self._open(None, True)
        elif self._one:
            return
        elif self._backlog:
            message, flags = self._backlog.pop()
            self._backlog.append((message, flags | HALF_CLOSE))
        else:
            self.half_close()

    def _keep(self, message: memoryview, flags: int) -> None:
        self._backlog.append((message, flags))
        self._backlog_bytes += len(message)
        self._pass_on()

    def granted(self, count: int) -> None:
        """Take a WINDOW of the server."""
        self.window += count
        self._pass_on()

    def _pass_on(self) -> None:
        while self._backlog and not self.ended:
            message, flags = self._backlog.popleft()
            size = min(len(message), CHUNK, max(0, self.window))
            if size < len(message):
                self._backlog.appendleft((message[size:], flags))
                if size == 0:
                    break
                flags = MORE
            self._backlog_bytes -= size
            self.put(cargo.data(self.id, message[:size], MESSAGE | flags), size)
        held = self._backlog_bytes > _BACKLOG
        if held != self._http.held:
            self._http.hold(held)

    def _gone(self, *_: object) -> None:
        self.cancel(_GONE)

    def _fault(self, code: int, message: str) -> None:
        err: LLMOSError = Internal("BAD_MESSAGE", message)
        if code == ResourceExhausted.code:
            err = ResourceExhausted("MESSAGE_TOO_LARGE", message)
        self.cancel(make_status(err))

    # From the server.

    def begin(self, headers: pb.Headers) -> None:
        """Pass HEADERS on at once: they may tell that a subscription misses nothing any more."""
        self.headers = headers
        self._http.send_headers(metadata_from_wire(headers.metadata))

    def _accept(self, message: bytes) -> None:
        self.delivered = True
        self._http.send(message)
        if not self._http.writable:
            self._queued += len(message)  # which keeps the server from being granted more

    def _room_there(self) -> None:
        if self._queued:
            self._queued = 0
            self._grant()

    def _conclude(self) -> None:
        while self.inbox:
            self._accept(self.inbox.popleft())
        status = self.status
        if self._one_reply and not self.delivered and (status is None or not status.code):
            status = _NO_REPLY
        super()._conclude()
        self._backlog.clear()
        if status is None:
            self._http.finish()
        else:
            trailers = metadata_from_wire(status.trailers)
            self._http.finish(status.code, status.message, trailers)
