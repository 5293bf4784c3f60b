"""Makes job processes by forking: `python -m llmos.servers.optimizer.zygote`, by `nursery.py`.

Importing what a job needs takes seconds of a processor; a fork has it at once. Its standard input
is a socket (see ForkOrder in process.proto). It imports what an order names first, which must touch
no GPU: that would not live in a fork. It ends when the server has closed the socket and its last
job has ended.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import sys
from dataclasses import dataclass, field
from importlib import import_module

from setproctitle import setproctitle

from llmos.api.optimizer.v1 import process_pb2 as pb
from llmos.servers.optimizer.job import __main__ as job

_ORDER_BYTES = 16_384
_NOT_STARTED = os.EX_OSERR


@dataclass
class Zygote:
    """Owns the socket and the children's pidfds (closed in each child)."""

    orders: socket.socket
    waiting: selectors.DefaultSelector = field(default_factory=selectors.DefaultSelector)
    serials: dict[int, tuple[int, int]] = field(default_factory=dict)  # by pidfd: serial, pid

    def serve(self) -> str | None:
        """Fork jobs to the end, then return None; in a job's process return its folder."""
        self.waiting.register(self.orders, selectors.EVENT_READ)
        listening = True
        while listening or self.serials:
            for key, _ in self.waiting.select():
                if key.fileobj is not self.orders:
                    self._ended(key.fd)
                    continue
                data, descriptors, _, _ = socket.recv_fds(self.orders, _ORDER_BYTES, 2)
                if not data:
                    self.waiting.unregister(self.orders)
                    listening = False
                    continue
                if (
                    folder := self._started(pb.ForkOrder.FromString(data), descriptors)
                ) is not None:
                    return folder
        return None

    def _started(self, order: pb.ForkOrder, descriptors: list[int]) -> str | None:
        for module in order.modules:
            try:
                import_module(module)
            except Exception:  # whatever a library says: the job imports it itself and reports it
                print(f"zygote: cannot import {module}; the job says why", file=sys.stderr)
        gc.collect()
        gc.freeze()  # what is here stays shared with the children
        try:
            pid = _fork()
        except OSError:
            self._say(pb.ForkAnswer(serial=order.serial, status=_NOT_STARTED))
        else:
            if pid == 0:
                self._become_job(order.folder, descriptors)
                return order.folder
            pidfd = os.pidfd_open(pid)
            self.serials[pidfd] = (order.serial, pid)
            self.waiting.register(pidfd, selectors.EVENT_READ)
            self._say(pb.ForkAnswer(serial=order.serial, pid=pid))
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _become_job(self, folder: str, descriptors: list[int]) -> None:
        """Be as if spawned: the lock as standard input, the log as output."""
        setproctitle(f"llmos-optimizer job {os.path.basename(folder)}")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for pidfd in self.serials:
            os.close(pidfd)
        self.waiting.close()
        self.orders.close()
        lock, log = descriptors
        for source, target in ((lock, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(lock)
        os.close(log)

    def _ended(self, pidfd: int) -> None:
        serial, pid = self.serials.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        self.waiting.unregister(pidfd)
        os.close(pidfd)
        self._say(pb.ForkAnswer(serial=serial, status=os.waitstatus_to_exitcode(status)))

    def _say(self, answer: pb.ForkAnswer) -> None:
        try:
            self.orders.send(answer.SerializeToString())
        except (BrokenPipeError, ConnectionResetError):  # the server is gone; its jobs go on
            pass


def _fork() -> int:
    """Fork into a session of its own; where this returns its id, signals reach that group."""
    ready, done = os.pipe()
    try:
        if (pid := os.fork()) == 0:
            os.setsid()
            return 0
        os.close(done)
        done = -1
        os.read(ready, 1)  # ends when the child closes its end, or with it
        return pid
    finally:
        os.close(ready)
        if done >= 0:
            os.close(done)


def main() -> None:
    """Serve; in a forked process do the job."""
    setproctitle("llmos-optimizer zygote")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it ends with the server
    orders = socket.socket(fileno=os.dup(0))
    folder = Zygote(orders).serve()
    if folder is not None:
        sys.argv = [sys.argv[0], folder]
        job.main()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(os.EX_OK)  # all is told and written; to take torch apart would take a second


if __name__ == "__main__":
    main()
