"""A port for code without an event loop: scripts, notebooks, REPLs.

    with SyncPort("unix:.../kernel.sock") as port:
        stub = execution_pb2_grpc.ExecutionStub(port.channel)
        for piece in stub.Generate(request): ...

One background thread runs the loop; calls may be made from any thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import grpc

from llmos.lib.port import PATIENCE_S, Port

T = TypeVar("T")


class SyncCall(grpc.RpcError, grpc.Call, grpc.Future):  # type: ignore[type-arg]
    """A call as grpc's synchronous API shows it; also the error that it ended with."""

    def __init__(self, port: SyncPort, start: Callable[[], Any], streaming: bool) -> None:
        """Start the call on the port's loop."""
        super().__init__()
        self._port = port
        self._streaming = streaming

        async def begin() -> Any:
            return start()

        self._call = port.run(begin())
        self._result: concurrent.futures.Future[Any] | None = None
        if not streaming:
            self._result = port.submit(self._await())
        self._final: tuple[grpc.StatusCode, str, Any] | None = None

    async def _await(self) -> Any:
        return await self._call

    def _ended(self) -> tuple[grpc.StatusCode, str, Any]:
        async def collect() -> tuple[grpc.StatusCode, str, Any]:
            call = self._call
            return await call.code(), await call.details(), await call.trailing_metadata()

        if self._final is None:
            self._final = self._port.run(collect())
        return self._final

    # grpc.Future

    def result(self, timeout: float | None = None) -> Any:
        """Return the reply; raises this object when the call failed."""
        assert self._result is not None
        try:
            return self._result.result(timeout)
        except concurrent.futures.TimeoutError:
            raise grpc.FutureTimeoutError() from None
        except concurrent.futures.CancelledError:
            raise grpc.FutureCancelledError() from None
        except grpc.aio.AioRpcError:
            raise self from None

    def exception(self, timeout: float | None = None) -> Any:
        """Return what `result` would raise, or None."""
        try:
            self.result(timeout)
        except grpc.RpcError as exc:
            return exc
        return None

    def traceback(self, timeout: float | None = None) -> Any:
        """Return the traceback of `exception`."""
        exc = self.exception(timeout)
        return exc.__traceback__ if exc is not None else None

    def cancelled(self) -> bool:
        """Return whether the call was cancelled."""
        return bool(self._call.cancelled())

    def running(self) -> bool:
        """Return whether the call goes on."""
        return not self._call.done()

    def done(self) -> bool:
        """Return whether the call has ended."""
        return bool(self._call.done())

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """Call `fn` with this call when it has ended."""

        async def register() -> None:
            self._call.add_done_callback(lambda _: fn(self))

        self._port.run(register())

    # grpc.Call

    def cancel(self) -> bool:
        """Give the call up: the work is stopped."""

        async def cancel() -> bool:
            return bool(self._call.cancel())

        return self._port.run(cancel())

    def is_active(self) -> bool:
        """Return whether the call goes on."""
        return self.running()

    def time_remaining(self) -> Any:
        """Return seconds to the deadline; None without one."""
        return self._call.time_remaining()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call back when the call has ended; False when it had already."""
        if self.done():
            return False
        self.add_done_callback(lambda _: callback())
        return True

    def initial_metadata(self) -> Any:
        """Return the response headers."""
        return tuple(self._port.run(self._call.initial_metadata()))

    def trailing_metadata(self) -> Any:
        """Return the trailing metadata; waits for the end."""
        return tuple(self._ended()[2])

    def code(self) -> Any:
        """Return the status code; waits for the end."""
        return self._ended()[0]

    def details(self) -> Any:
        """Return the status message; waits for the end."""
        return self._ended()[1]

    # Iteration of reply streams.

    def __iter__(self) -> Iterator[Any]:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next reply; raises this object when the call failed."""
        try:
            reply = self._port.run(self._call.read())
        except grpc.aio.AioRpcError:
            raise self from None
        if reply is grpc.aio.EOF:
            raise StopIteration
        return reply

    def __str__(self) -> str:
        """Return code and message when the call has ended."""
        if not self.done():
            return "a call that goes on"
        code, details, _ = self._ended()
        return f"{code.name}: {details}"


class _Callable:
    def __init__(self, port: SyncPort, kind: Any, unary: bool, streaming: bool) -> None:
        self._port = port
        self._kind = kind
        self._unary = unary
        self._streaming = streaming

    def _start(self, request: Any, timeout: float | None, metadata: Any) -> SyncCall:
        source = request if self._unary else _aiter(request)
        return SyncCall(
            self._port,
            lambda: self._kind(source, timeout=timeout, metadata=metadata),
            self._streaming,
        )

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Any = None, **_: Any
    ) -> Any:
        call = self._start(request, timeout, metadata)
        return call if self._streaming else call.result()

    def with_call(
        self, request: Any, timeout: float | None = None, metadata: Any = None, **_: Any
    ) -> Any:
        call = self._start(request, timeout, metadata)
        return call.result(), call

    def future(
        self, request: Any, timeout: float | None = None, metadata: Any = None, **_: Any
    ) -> Any:
        return self._start(request, timeout, metadata)


async def _aiter(requests: Any) -> Any:
    """Yield from a synchronous iterator that may block, read in a thread of its own."""
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    end, loop, ready = object(), asyncio.get_running_loop(), asyncio.Semaphore(0)

    def pull() -> None:
        try:
            for item in requests:
                items.put((item, None))
                loop.call_soon_threadsafe(ready.release)
            items.put((end, None))
        except BaseException as exc:  # handed on to the caller's side below
            items.put((end, exc))
        loop.call_soon_threadsafe(ready.release)

    threading.Thread(target=pull, name="llmos-requests", daemon=True).start()
    while True:
        await ready.acquire()
        item, exc = items.get_nowait()
        if exc is not None:
            raise exc
        if item is end:
            return
        yield item


class SyncChannel(grpc.Channel):
    """The channel of a SyncPort; generated stubs work over it unchanged."""

    def __init__(self, port: SyncPort) -> None:
        """Make calls over `port`."""
        self._port = port

    def _make(self, name: str, unary: bool, streaming: bool, args: Any, kwargs: Any) -> Any:
        kind = getattr(self._port.port.channel, name)(*args, **kwargs)
        return _Callable(self._port, kind, unary, streaming)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """Return the callable of a method."""
        return self._make("unary_unary", True, False, args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """Return the callable of a method."""
        return self._make("unary_stream", True, True, args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """Return the callable of a method."""
        return self._make("stream_unary", False, False, args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """Return the callable of a method."""
        return self._make("stream_stream", False, True, args, kwargs)

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        """Tell READY at once: a port reconnects by itself."""
        callback(grpc.ChannelConnectivity.READY)

    def unsubscribe(self, callback: Any) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Close the port."""
        self._port.close()

    def __enter__(self) -> SyncChannel:
        """Return itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Close."""
        self.close()


class SyncPort:
    """A Port with a thread of its own."""

    def __init__(self, address: str, name: str = "python", timeout_s: float = PATIENCE_S) -> None:
        """Attach. Raises Unavailable KERNEL_UNREACHABLE after `timeout_s`."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="llmos-port", daemon=True
        )
        self._thread.start()
        self._open = True

        async def attach() -> Port:
            port = Port(address, name)
            await port.start(timeout_s)
            return port

        try:
            self.port = self.run(attach())
        except BaseException:
            self._stop()
            raise
        self.channel = SyncChannel(self)

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the port's loop; return its future."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the port's loop and return its result."""
        return self.submit(work).result()

    def close(self) -> None:
        """Detach; calls that go on fail."""
        if self._open:
            self._open = False
            self.run(self.port.stop(0.5))
            self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> SyncPort:
        """Return itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Close."""
        self.close()
