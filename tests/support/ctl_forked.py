"""`llmos-ctl` in a process of its own, without the second that its imports take each time.

What is about the start itself, a terminal or signals belongs on a real `python -m
llmos.clients.ctl`.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from typing import IO

import forked


def run(
    *words: str, env: Mapping[str, str] | None = None, stdin: str = "", timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `llmos-ctl WORDS` as subprocess.run does. env None: ours without LLMOS_ variables.

    Raises subprocess.TimeoutExpired, after which it is no more.
    """
    if env is None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        given.write(stdin)
        given.seek(0)
        files = [file.fileno() for file in (given, out, err)]
        process = forked.start("llmos.clients.ctl", words, env, files)
        command = ["llmos-ctl", *words]
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise subprocess.TimeoutExpired(command, timeout, _all(out), _all(err)) from None
        return subprocess.CompletedProcess(command, code, _all(out), _all(err))


def _all(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
