"""Our programs in processes of their own, without the second that their imports take each time.

`start` asks a server, started at need, that has imported the program and forks for each run:
arguments, environment, working directory and the three standard files are the run's own. What is
about the start itself, a terminal or signals belongs on a real `python -m`.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

_HEADER = 1 << 20  # bytes of one request at most


class Forked:
    """A process that runs; like subprocess.Popen, as far as it goes."""

    def __init__(self, args: Sequence[str], answers: socket.socket) -> None:
        self.args = args
        self._answers = answers
        self.pid = int(answers.recv(32))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code as Popen has it; None: it still runs."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            return self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._answers.settimeout(timeout)
            try:
                code = self._answers.recv(32)
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._answers.close()
            self.returncode = int(code)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def start(
    package: str, words: Sequence[str], env: Mapping[str, str], files: Sequence[int]
) -> Forked:
    """Run `python -m PACKAGE WORDS` with these as its standard input, output and error."""
    request = json.dumps({"words": words, "env": dict(env), "folder": os.getcwd()}).encode()
    ours, its = socket.socketpair()
    with its:
        socket.send_fds(_server(package, os.getpid()), [request], [its.fileno(), *files])
    return Forked([package, *words], ours)


@functools.cache
def _server(package: str, of: int) -> socket.socket:
    """Return where the server of process `of` is asked; it ends with that process."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, __file__, package, str(its.fileno())]
        process = subprocess.Popen(command, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
    atexit.register(_end, process, ours)
    return ours


def _end(process: subprocess.Popen[bytes], ours: socket.socket) -> None:
    ours.close()
    process.wait()


def _serve(package: str, requests: socket.socket) -> None:
    """Fork for each request until nobody can make one any more.

    What has ended stays, as a zombie, until who asked has heard of it: its pid is nobody else's.
    """
    running: dict[int, tuple[int, socket.socket]] = {}  # pidfd: pid and who waits for it
    told: dict[int, tuple[int, socket.socket]] = {}  # descriptor of who waits: the same
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                poll.unregister(ready)
                pid, waiter = running.pop(ready)
                end = os.waitid(os.P_PIDFD, ready, os.WEXITED | os.WNOWAIT)
                os.close(ready)
                assert end is not None
                code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
                waiter.send(str(code).encode())
                told[waiter.fileno()] = pid, waiter
                poll.register(waiter, select.POLLIN)
                continue
            if ready in told:
                poll.unregister(ready)
                pid, waiter = told.pop(ready)
                waiter.close()
                os.waitpid(pid, 0)
                continue
            data, files, _, _ = socket.recv_fds(requests, _HEADER, 4)
            if not data:
                return
            waiter = socket.socket(fileno=files[0])
            pid = os.fork()
            if not pid:
                _become(package, json.loads(data), files[1:])
            for file in files[1:]:
                os.close(file)
            waiter.send(f"{pid:<32}".encode())
            number = os.pidfd_open(pid)
            running[number] = pid, waiter
            poll.register(number, select.POLLIN)


def _become(package: str, request: Any, files: list[int]) -> NoReturn:
    """Be the program: its files, environment and arguments; never return."""
    from llmos.lib import failpoint

    code: object = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(3, 256)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["env"])
        importlib.reload(failpoint)  # it has read the environment
        sys.argv = [package, *request["words"]]
        sys.orig_argv = [sys.executable, "-m", *sys.argv]  # for who begins anew
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            importlib.import_module(f"{package}.__main__").main()
            code = 0
        except SystemExit as exc:
            code = exc.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else int(code is not None))


def _import(package: str) -> None:
    """Import the program, with what of a command line is imported only when it is used."""
    if package == "llmos.clients.ctl":
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, package + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    importlib.import_module(f"{package}.__main__")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on the tests is for them
    _import(sys.argv[1])
    _serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
