"""The server dies at every step of everything it does: nothing acknowledged is lost, nothing is
half-done.

LLMOS_STORAGE_KILLS=500 (with -s to see what it did) runs the long campaign, in about half an hour;
LLMOS_STORAGE_SEED repeats one.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
from storage_history import History, check, dead, work
from storage_process import Process, start

from llmos.lib.config import socket_address
from llmos.lib.failpoint import VARIABLE

KILLS = int(os.environ.get("LLMOS_STORAGE_KILLS", "8"))
SEED = int(os.environ.get("LLMOS_STORAGE_SEED", "4"))
STEPS = [
    *("file.written", "file.synced", "file.placing", "file.linked", "file.placed"),
    *("rows.written", "rows.committed", "commit.before", "commit.after"),
    *("drop.rows", "drop.committed", "drop.unlinked"),
    *("upload.created", "upload.synced", "upload.committed"),
]


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="llmos-") as folder:
        yield Path(folder)


async def until_dead(
    state_dir: Path, process: Process, history: History, round: int, after_s: float
) -> None:
    """Work; kill the server when it has not died by itself by then."""
    async with grpc.aio.insecure_channel(socket_address(state_dir, "storage")) as channel:
        busy = asyncio.create_task(work(channel, state_dir, history, round))
        await asyncio.wait([busy], timeout=after_s)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        await asyncio.wait([busy])
        error = busy.exception()
        assert error is not None
        if not dead(error):
            raise error
    await asyncio.to_thread(process.wait, 10)


@pytest.mark.timeout(120 + 30 * KILLS)
async def test_killed_at_every_step(state_dir: Path) -> None:
    dice, history = random.Random(SEED), History()
    died_there: set[str] = set()
    todo: list[str] = []
    for round in range(KILLS):
        if round % 4 == 3:  # at any moment
            extra, name, after_s = {}, "", dice.uniform(0.05, 1.5)
        else:
            if not todo:
                todo = dice.sample(STEPS, len(STEPS))
            name, after_s = todo.pop(), 5.0
            extra = {VARIABLE: f"{name}*{dice.randrange(1, 12 if 'drop' not in name else 4)}"}
        try:
            process = start(state_dir, "--scrub-bytes-per-s", "0", extra=extra)
        except RuntimeError:  # it died at its start: that is one of the steps, too
            died_there.add(name)
            await check(state_dir, history)
            continue
        try:
            await until_dead(state_dir, process, history, round, after_s)
            if process.returncode == -signal.SIGKILL and name:
                died_there.add(name)
        finally:
            process.kill()
            process.wait()
        await check(state_dir, history)
    print(f"{KILLS} kills, {history.steps} acknowledged changes, at {sorted(died_there)}")
    assert history.steps > KILLS, "the server was killed before it did anything"
    assert history.versions and len(died_there) > min(KILLS, len(STEPS)) // 3
