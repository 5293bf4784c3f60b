from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from memory_process import line_of

from llmos.servers.execution.manager.measuring import pss
from llmos.servers.execution.manager.process import Process

STUBBORN = (
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
)


def start(code: str, **pipes: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], **pipes)  # type: ignore[call-overload, no-any-return]


async def test_it_sees_the_end_of_a_process() -> None:
    child = start("input()", stdin=subprocess.PIPE)
    process = Process(child.pid)
    assert process.alive()
    assert pss(process.pid) > 0
    assert child.stdin is not None
    child.stdin.close()
    await asyncio.wait_for(process.exited, 20)
    assert not process.alive()
    assert child.wait() != 0
    process.signal(signal.SIGKILL)  # nobody is hit
    assert pss(process.pid) == 0


async def test_one_that_ignores_sigterm_is_killed() -> None:
    child = start(STUBBORN, stdout=subprocess.PIPE)
    assert child.stdout is not None
    await line_of(child.stdout)
    await Process(child.pid).end(0.1)
    child.stdout.close()
    assert child.wait() == -9


async def test_there_must_be_a_process() -> None:
    child = start("")
    child.wait()
    with pytest.raises(ProcessLookupError):
        Process(child.pid)


async def test_letting_go_leaves_it_alone() -> None:
    child = start("input()", stdin=subprocess.PIPE)
    process = Process(child.pid)
    process.close()
    process.close()
    os.kill(child.pid, 0)
    child.kill()
    assert child.stdin is not None
    child.stdin.close()
    child.wait()
