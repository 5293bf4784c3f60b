"""`llmos-ctl` in a process of its own, without the second that its imports take each time.

`run` asks a server, started at need, that has imported the command line and forks for each run:
arguments, environment, working directory and the three standard files are the run's own. What is
about the start itself, a terminal or signals belongs on a real `python -m llmos.clients.ctl`.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

SUPPORT = Path(__file__).parent
_HEADER = 1 << 20  # bytes of one request at most


@functools.cache
def _server(of: int) -> socket.socket:
    """Return where the server of process `of` is asked; it ends with that process."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, __file__, str(its.fileno())]
        process = subprocess.Popen(command, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
    atexit.register(_end, process, ours)
    return ours


def _end(process: subprocess.Popen[bytes], ours: socket.socket) -> None:
    ours.close()
    process.wait()


def run(
    *words: str, env: Mapping[str, str] | None = None, stdin: str = "", timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `llmos-ctl WORDS` as subprocess.run does. env None: ours without LLMOS_ variables.

    Raises subprocess.TimeoutExpired, after which it is no more.
    """
    if env is None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}
    request = json.dumps({"words": words, "env": dict(env), "folder": os.getcwd()}).encode()
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        given.write(stdin)
        given.seek(0)
        ours, its = socket.socketpair()
        with ours:
            with its:
                files = [its.fileno(), given.fileno(), out.fileno(), err.fileno()]
                socket.send_fds(_server(os.getpid()), [request], files)
            code = _await(ours, timeout)
        if code is None:
            raise subprocess.TimeoutExpired(["llmos-ctl", *words], timeout, _all(out), _all(err))
        return subprocess.CompletedProcess(["llmos-ctl", *words], code, _all(out), _all(err))


def _all(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _await(answers: socket.socket, timeout: float) -> int | None:
    """Return the exit code; None = it took too long, and was killed."""
    pid = int(answers.recv(32))
    answers.settimeout(timeout)
    try:
        return int(answers.recv(32))
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        answers.settimeout(None)
        answers.recv(32)
        return None


def _serve(requests: socket.socket) -> None:
    """Fork for each request until nobody can make one any more."""
    running: dict[int, tuple[int, socket.socket]] = {}  # pidfd: pid and who waits for it
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready != requests.fileno():
                poll.unregister(ready)
                os.close(ready)
                pid, waiter = running.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with waiter:
                    waiter.send(str(code).encode())
                continue
            data, files, _, _ = socket.recv_fds(requests, _HEADER, 4)
            if not data:
                return
            waiter = socket.socket(fileno=files[0])
            pid = os.fork()
            if not pid:
                _become(json.loads(data), files[1:])
            for file in files[1:]:
                os.close(file)
            waiter.send(f"{pid:<32}".encode())
            number = os.pidfd_open(pid)
            running[number] = pid, waiter
            poll.register(number, select.POLLIN)


def _become(request: Any, files: list[int]) -> NoReturn:
    """Be the command: its files, environment and arguments; never return."""
    from llmos.clients.ctl.__main__ import main

    code: object = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(3, 256)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["env"])
        sys.argv = ["llmos-ctl", *request["words"]]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            main()
            code = 0
        except SystemExit as exc:
            code = exc.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else int(code is not None))


def _imported() -> None:
    """Import what the commands would, each for itself."""
    import importlib
    import pkgutil

    import llmos.clients.ctl as package

    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("llmos.clients.ctl.__main__")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on the tests is for them
    _imported()
    _serve(socket.socket(fileno=int(sys.argv[1])))
