"""The manager's line to the zygote: starts it, finds it again, orders workers from it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from llmos.api.execution.v1 import zygote_pb2 as pb
from llmos.lib import config
from llmos.lib import log as logs
from llmos.lib.call import background
from llmos.lib.errors import BY_CODE, Unavailable, Unknown
from llmos.servers.execution.manager.process import Process, waiting_for
from llmos.servers.execution.manager.pulse import watched
from llmos.servers.execution.manager.seams import Crashed, ZygoteLost
from llmos.servers.execution.wire import BadFrame, pack, unpack

_START_S = 120.0  # importing everything from a cold disk
_MAX_BACKOFF_S = 10.0
_KEPT_STATUSES = 256

T = TypeVar("T")
log = logging.getLogger(__name__)


class Newborn:
    """A worker between fork and ready; see seams.Child."""

    def __init__(self, zygote: ZygoteClient, process: Process) -> None:
        """Watch a forked process."""
        self.process = process
        self._zygote = zygote
        self.plan: asyncio.Future[int] = _future()
        self.info: asyncio.Future[pb.WorkerInfo] = _future()

    async def planned(self) -> int:
        """See seams.Child."""
        return await self.plan

    async def go(self, granted_bytes: int) -> pb.WorkerInfo:
        """See seams.Child."""
        go = pb.GoWorker(pid=self.process.pid, granted_bytes=granted_bytes)
        self._zygote.send(pb.ZygoteCommand(go=go))
        return await self.info

    def fail(self, exc: Exception) -> None:
        """End all waiting by `exc`."""
        for future in (self.plan, self.info):
            if not future.done():
                future.set_exception(exc)


class ZygoteClient:
    """One connection to the zygote of a state directory, kept up. See seams.Forge."""

    def __init__(self, state_dir: Path, progress: Callable[[], None] = lambda: None) -> None:
        """Prepare; `start` connects. progress: called while a zygote is seen to start."""
        self._progress = progress
        self._state_dir = state_dir
        self._path = config.run_dir(state_dir) / "zygote.sock"
        self._connected = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._orders: dict[int, asyncio.Future[Newborn]] = {}
        self._numbers = itertools.count(1)
        self._newborns: dict[int, Newborn] = {}
        self._statuses: OrderedDict[int, int] = OrderedDict()
        self._news = asyncio.Condition()
        self._cause = "it is still starting"
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.hello = pb.ZygoteHello()

    def start(self) -> None:
        """Connect, starting the zygote if none runs, and do so again whenever it dies."""
        self._keeper = background(self._keep())

    async def stop(self) -> None:
        """Hang up; the zygote and the workers go on, but for one that is still starting."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._process is not None:
            self._process.close()

    async def fork(self, order: pb.WorkerOrder) -> Newborn:
        """See seams.Forge."""
        try:
            await asyncio.wait_for(self._connected.wait(), _START_S)
        except TimeoutError:
            raise Unavailable(
                "LOAD_FAILED",
                f"Workers cannot be started: no zygote answers ({self._cause}); see "
                f"{self.log_file}.",
            ) from None
        number = next(self._numbers)
        self._orders[number] = _future()
        try:
            self.send(pb.ZygoteCommand(fork=pb.ForkWorker(order=number, worker=order)))
            return await self._orders[number]
        finally:
            del self._orders[number]

    def log(self, level: str) -> None:
        """See seams.Forge."""
        with contextlib.suppress(ZygoteLost):  # it hears it when there is one
            self.send(pb.ZygoteCommand(log=pb.LogZygote(log_level=level)))

    async def exit_status(self, pid: int) -> int | None:
        """See seams.Forge."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5), self._news:
                await self._news.wait_for(lambda: pid in self._statuses)
        return self._statuses.get(pid)

    @property
    def log_file(self) -> Path:
        """Return where the zygote logs."""
        return self._state_dir / "logs" / "zygote.log"

    def send(self, command: pb.ZygoteCommand) -> None:
        """Send a command. Raises ZygoteLost."""
        if self._writer is None or self._writer.is_closing():
            raise ZygoteLost
        self._writer.write(pack(command))

    async def _keep(self) -> None:
        delay = 0.1
        while True:
            try:
                reader, self._writer = await self._connect()
                async with watched(self._writer, self.send) as heard:
                    await self._converse(reader, heard)
                delay = 0.1
            except (OSError, BadFrame) as exc:
                self._cause = str(exc) or type(exc).__name__
                log.warning("no zygote", extra={"cause": self._cause})
            finally:
                self._lost()
            await asyncio.sleep(delay)
            delay = min(delay * 2, _MAX_BACKOFF_S)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_unix_connection(self._path)
        except (FileNotFoundError, ConnectionRefusedError):
            process = self._process = self._spawn()
        try:
            async with asyncio.timeout(_START_S), waiting_for(process, self._progress):
                while process.alive():
                    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                        return await asyncio.open_unix_connection(self._path)
                    await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            await process.end(1)  # nobody knows of it yet, who could end it or use it
            raise
        raise ConnectionError("it ended while starting")

    def _spawn(self) -> Process:
        """Start a zygote that outlives us."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        out = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        module = "llmos.servers.execution.zygote"
        try:
            # Not asyncio's or subprocess's: they end or complain about a child they leave behind.
            # -P: the working directory must not decide what is imported.
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-m", module, str(self._state_dir), logs.shown()],
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, null, 0)]
                + [(os.POSIX_SPAWN_DUP2, out, fd) for fd in (1, 2)],
                setsid=True,
            )
        finally:
            os.close(out)
            os.close(null)
        log.info("starting the zygote", extra={"pid": pid})
        process = Process(pid)
        process.exited.add_done_callback(lambda _: os.waitpid(pid, os.WNOHANG))
        return process

    async def _converse(self, reader: asyncio.StreamReader, heard: Callable[[], None]) -> None:
        buffer = bytearray()
        while data := await reader.read(1 << 16):
            heard()
            buffer += data
            while (event := unpack(buffer, pb.ZygoteEvent)) is not None:
                await self._on_event(event)
        raise ConnectionError("it ended")

    async def _on_event(self, event: pb.ZygoteEvent) -> None:
        kind = event.WhichOneof("event")
        if kind == "hello":
            self.hello = event.hello
            if event.hello.version != version("llmos"):
                # Of before an upgrade: its workers may go on, new ones must run the new code.
                with contextlib.suppress(ProcessLookupError):
                    await Process(event.hello.pid).end(5)
                raise ConnectionError("it was of another version")
            self.log(logs.shown())  # it may be of an earlier manager
            self._connected.set()
            log.info("zygote", extra={"pid": event.hello.pid, "missing": [*event.hello.missing]})
        elif kind == "forked":
            self._on_forked(event.forked)
        elif kind == "exited":
            exited = event.exited
            status = -exited.signal if exited.signal else exited.status
            self._statuses[exited.pid] = status
            if len(self._statuses) > _KEPT_STATUSES:
                self._statuses.popitem(last=False)
            if (newborn := self._newborns.pop(exited.pid, None)) is not None:
                newborn.fail(Crashed(status))
            async with self._news:
                self._news.notify_all()
        elif kind == "planned" and (newborn := self._newborns.get(event.planned.pid)):
            _set(newborn.plan, event.planned.bytes)
        elif kind == "ready" and (newborn := self._newborns.pop(event.ready.pid, None)):
            _set(newborn.info, event.ready.worker)
        elif kind == "failed" and (newborn := self._newborns.pop(event.failed.pid, None)):
            failed = event.failed
            newborn.fail(BY_CODE.get(failed.code, Unknown)(failed.reason, failed.message))

    def _on_forked(self, forked: pb.WorkerForked) -> None:
        future = self._orders.get(forked.order)
        if future is None or future.done():
            return  # who ordered it gave up; it is killed when it asks for its grant
        if not forked.pid:
            future.set_exception(
                Unavailable("LOAD_FAILED", f"A worker process cannot be made: {forked.error}.")
            )
            return
        try:
            newborn = Newborn(self, Process(forked.pid))
        except ProcessLookupError:
            future.set_exception(Crashed(None))
            return
        self._newborns[forked.pid] = newborn
        future.set_result(newborn)

    def _lost(self) -> None:
        self._connected.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for future in self._orders.values():
            if not future.done():
                future.set_exception(ZygoteLost())
        for newborn in self._newborns.values():
            newborn.fail(ZygoteLost())
        self._newborns.clear()


def _future() -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    # Whoever waited may be gone when it fails; that is not worth a complaint.
    future.add_done_callback(lambda f: f.cancelled() or f.exception())
    return future


def _set(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)
