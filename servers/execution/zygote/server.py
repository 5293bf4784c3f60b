"""The zygote's loop: one thread, no asyncio (its loop does not survive a fork)."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import selectors
import signal
import socket
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from llmos.api.execution.v1 import zygote_pb2 as pb
from llmos.lib import log as logs
from llmos.lib.errors import LLMOSError
from llmos.lib.host import ProcessRecord
from llmos.servers.execution import heap
from llmos.servers.execution.wire import BadFrame, pack, unpack

SOCKET = "zygote.sock"
_TICK_S = 5.0
_MAX_UNSENT = 4 << 20

log = logging.getLogger(__name__)


class AlreadyRunning(Exception):
    """Another zygote serves this run directory."""


@dataclass(eq=False)
class Peer:
    """A manager's connection, or (with a pid) the socket pair of a worker being born."""

    sock: socket.socket
    pid: int = 0
    owner: Peer | None = None  # a worker's: the connection it was ordered on
    worker: pb.WorkerOrder | None = None
    unread: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)


class Zygote:
    """Listens, forks, hands messages on, reaps. Outlives managers; workers outlive it."""

    def __init__(self, run_dir: Path) -> None:
        """Take the run directory. Raises AlreadyRunning when another zygote has it."""
        self._run_dir = run_dir
        self._path = run_dir / SOCKET
        self._lock = os.open(run_dir / "zygote.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._lock)
            raise AlreadyRunning from exc
        # Before the long imports, so that whoever stops everything finds us meanwhile.
        self._record = ProcessRecord.of(os.getpid(), "zygote", f"unix:{self._path}")
        self._record.write(run_dir)
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._wake, self._waker = socket.socketpair()
        self._managers: list[Peer] = []
        self._newborn: dict[int, Peer] = {}
        self._stop = False

    def serve(self, imported: list[str], missing: list[str]) -> None:
        """Serve until SIGTERM, or until the run directory is gone and nobody is connected."""
        self._hello = pb.ZygoteHello(
            pid=os.getpid(), version=version("llmos"), imported=imported, missing=missing
        )
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()  # of a dead zygote: the lock is ours
        self._listener.bind(str(self._path))
        self._listener.listen()
        for sock in (self._listener, self._wake, self._waker):
            sock.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, self._on_term)
        log.info("serving", extra={"address": self._record.address})
        while not self._stop:
            for key, mask in self._selector.select(_TICK_S):
                self._handle(key, mask)
            if not self._path.exists() and not self._managers:
                log.warning("the run directory is gone")
                return
        self._record.remove(self._run_dir)
        self._path.unlink(missing_ok=True)
        log.info("stopped")

    def _on_term(self, *_: object) -> None:
        self._stop = True

    def _handle(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.fileobj is self._listener:
            sock, _ = self._listener.accept()
            peer = Peer(sock)
            self._managers.append(peer)
            self._watch(peer)
            self._send(peer, pb.ZygoteEvent(hello=self._hello))
        elif key.fileobj is self._wake:
            with contextlib.suppress(BlockingIOError):
                self._wake.recv(4096)
            self._reap()
        elif isinstance(peer := key.data, Peer) and peer.sock.fileno() >= 0:
            if mask & selectors.EVENT_WRITE:
                self._flush(peer)
            if mask & selectors.EVENT_READ and peer.sock.fileno() >= 0:
                self._read(peer)

    def _watch(self, peer: Peer) -> None:
        peer.sock.setblocking(False)
        self._selector.register(peer.sock, selectors.EVENT_READ, peer)

    def _read(self, peer: Peer) -> None:
        try:
            data = peer.sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        peer.unread += data
        try:
            if peer.pid:
                while (event := unpack(peer.unread, pb.ZygoteEvent)) is not None:
                    self._on_event(peer, event)
            else:
                while (command := unpack(peer.unread, pb.ZygoteCommand)) is not None:
                    self._on_command(peer, command)
        except BadFrame as exc:
            log.error("closing a connection", extra={"cause": str(exc), "pid": peer.pid})
            data = b""
        if not data:
            self._close(peer)

    def _on_command(self, peer: Peer, command: pb.ZygoteCommand) -> None:
        if command.HasField("fork"):
            self._fork(peer, command.fork)
        elif command.HasField("go"):
            if (newborn := self._newborn.get(command.go.pid)) is not None:
                self._send(newborn, command)
        elif command.HasField("ping"):
            self._send(peer, pb.ZygoteEvent(pong=pb.ZygotePong()))
        elif command.HasField("log"):
            logs.show(command.log.log_level)

    def _on_event(self, newborn: Peer, event: pb.ZygoteEvent) -> None:
        if newborn.owner is not None:
            self._send(newborn.owner, event)
        if event.HasField("ready"):
            self._close(newborn)  # grown up: it depends neither on us nor on who ordered it
            if newborn.worker is not None:
                _learn(newborn.worker)

    def _fork(self, owner: Peer, order: pb.ForkWorker) -> None:
        try:
            ours, theirs = socket.socketpair()
            pid = os.fork()
        except OSError as exc:
            failed = pb.WorkerForked(order=order.order, error=str(exc))
            self._send(owner, pb.ZygoteEvent(forked=failed))
            return
        if pid == 0:
            ours.close()
            self._forget()
            # `preload` has it, unless the extra is missing: then nobody orders workers.
            from llmos.servers.execution.worker.birth import be_worker

            be_worker(order.worker, theirs)  # never returns
        theirs.close()
        newborn = Peer(ours, pid, owner, order.worker)
        self._newborn[pid] = newborn
        self._watch(newborn)
        log.info("forked", extra={"worker": order.worker.ref, "pid": pid})
        forked = pb.WorkerForked(order=order.order, pid=pid)
        self._send(owner, pb.ZygoteEvent(forked=forked))

    def _forget(self) -> None:
        """In a child: let go of everything that is the zygote's."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for peer in (*self._managers, *self._newborn.values()):
            peer.sock.close()
        for sock in (self._listener, self._wake, self._waker):
            sock.close()
        self._selector.close()
        os.close(self._lock)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (newborn := self._newborn.get(pid)) is not None:
                self._read(newborn)  # its last words come before the news of its end
                self._close(newborn)
            code = os.waitstatus_to_exitcode(status)
            exited = pb.WorkerExited(pid=pid, status=max(code, 0), signal=max(-code, 0))
            log.info("reaped", extra={"pid": pid, "status": code})
            for manager in list(self._managers):
                self._send(manager, pb.ZygoteEvent(exited=exited))

    def _send(self, peer: Peer, message: pb.ZygoteEvent | pb.ZygoteCommand) -> None:
        peer.unsent += pack(message)
        self._flush(peer)

    def _flush(self, peer: Peer) -> None:
        if peer.sock.fileno() < 0:
            return
        try:
            while peer.unsent:
                del peer.unsent[: peer.sock.send(peer.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            return  # the read side sees the end of it
        if len(peer.unsent) > _MAX_UNSENT:
            log.error("a manager does not read; closing its connection")
            self._close(peer)
            return
        write = selectors.EVENT_WRITE if peer.unsent else 0
        self._selector.modify(peer.sock, selectors.EVENT_READ | write, peer)

    def _close(self, peer: Peer) -> None:
        if peer.sock.fileno() < 0:
            return
        self._selector.unregister(peer.sock)
        peer.sock.close()
        if peer.pid:
            self._newborn.pop(peer.pid, None)
            return
        self._managers.remove(peer)
        for pid, newborn in list(self._newborn.items()):
            if newborn.owner is peer:  # nobody waits for it any more
                os.kill(pid, signal.SIGKILL)


def _learn(order: pb.WorkerOrder) -> None:
    """Keep what the next worker of the same files will need; see `select.remember`."""
    from llmos.servers.execution.engine import select
    from llmos.servers.execution.worker.birth import spec_of

    try:
        learnt = select.remember(spec_of(order))
    except (
        LLMOSError,
        OSError,
    ) as exc:  # e.g. the files are gone; workers read for themselves
        log.warning("nothing learnt", extra={"worker": order.ref, "cause": str(exc)})
        return
    if learnt:
        heap.give_back()
        gc.collect()
        gc.freeze()  # as after the imports
