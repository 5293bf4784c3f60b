"""Running a command while its lock is held: renews the lease, stops the command when it is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from types import TracebackType

import grpc

from llmos.api.storage.v1 import locks_pb2, locks_pb2_grpc
from llmos.clients.ctl.fence import VARIABLE
from llmos.clients.ctl.progress import note
from llmos.clients.ctl.session import Session
from llmos.lib.errors import Aborted, NotFound
from llmos.lib.rpc import from_rpc_error

_TICK_S = 0.05
_NOT_FOUND = 127  # as shells say it
_NOT_EXECUTABLE = 126


class Renewal:
    """Renews a lease in a thread while inside; `lost` is set when it cannot be taken as alive.

    Alive: storage said so less than its time ago, measured from when it was asked. Storage that is
    away for longer counts as a loss: another holder may have been let in.
    """

    def __init__(self, session: Session, lease: str, ttl: float, asked: float) -> None:
        """Renew every third of `ttl` seconds; asked: when it was, by time.monotonic."""
        self._leases = session.kernel(locks_pb2_grpc.LeasesStub)
        self._locks = session.kernel(locks_pb2_grpc.LocksStub)
        self._held: tuple[str, int] | None = None
        self._request = locks_pb2.RenewLeaseRequest(id=lease)
        self._ttl = ttl
        self._good_until = asked + ttl
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)
        self.lost = threading.Event()

    def held(self, name: str, token: int) -> None:
        """From now on also be sure that this token holds this lock: somebody may release it."""
        self._held = name, token

    def _run(self) -> None:
        while not self._done.wait(self._ttl / 3):
            asked = time.monotonic()
            try:
                timeout = min(max(0.05, self._good_until - asked), self._ttl / 3)
                self._leases.RenewLease(self._request, timeout=timeout)
                if self._held is not None and not self._holds(*self._held, timeout):
                    self.lost.set()
                    return
                self._good_until = asked + self._ttl
            except grpc.RpcError as exc:
                if isinstance(from_rpc_error(exc), NotFound) or time.monotonic() > self._good_until:
                    self.lost.set()
                    return

    def _holds(self, name: str, token: int, timeout: float) -> bool:
        reply = self._locks.GetLock(locks_pb2.GetLockRequest(name=name), timeout=timeout)
        return reply.lock.holder.token == token

    def __enter__(self) -> Renewal:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End."""
        self._done.set()
        self._thread.join()


def hold(fence: str, lost: threading.Event, words: Sequence[str], grace_s: float) -> int:
    """Run a command under a lock (fence: LOCK:TOKEN); return its exit code.

    Raises Aborted LOCK_LOST after stopping the command, with all it started.
    """
    try:
        child = subprocess.Popen(
            list(words), env={**os.environ, VARIABLE: fence}, start_new_session=True
        )
    except FileNotFoundError:
        note(f"llmos-ctl: {words[0]}: command not found")
        return _NOT_FOUND
    except PermissionError:
        note(f"llmos-ctl: {words[0]}: permission denied")
        return _NOT_EXECUTABLE
    passing = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda n, _: _send(child, n)) for number in passing}
    try:
        while child.poll() is None:
            if lost.wait(_TICK_S):
                _end(child, grace_s)
                name = fence.rpartition(":")[0]
                raise Aborted("LOCK_LOST", f"The lock {name} was lost; the command was stopped.")
        return child.returncode if child.returncode >= 0 else 128 - child.returncode
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(child: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        pass  # it ended already


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    _send(child, signal.SIGTERM)
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        pass  # then so
    _send(child, signal.SIGKILL)
    child.wait()
