"""The power goes: what was not fsynced is gone, what was acknowledged is not.

LLMOS_STORAGE_POWER_CUTS=100 runs the long campaign.
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
import powerloss
import pytest
from storage_history import History, check, dead, work
from storage_process import start

from llmos.lib.config import socket_address

CUTS = int(os.environ.get("LLMOS_STORAGE_POWER_CUTS", "4"))


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="llmos-") as folder:
        yield Path(folder)


@pytest.mark.timeout(60 + 12 * CUTS)
async def test_the_power_goes(state_dir: Path, tmp_path: Path) -> None:
    library = powerloss.build(tmp_path)
    if library is None:
        pytest.skip("needs a C compiler (cc)")
    seen = tmp_path / "seen"
    seen.mkdir()
    dice, history, lost = random.Random(11), History(), 0
    for round in range(CUTS):
        extra = {"LD_PRELOAD": str(library), "POWERLOSS_DIR": str(seen)}
        process = start(state_dir, "--scrub-bytes-per-s", "0", extra=extra, fresh=True)
        try:
            async with grpc.aio.insecure_channel(socket_address(state_dir, "storage")) as channel:
                busy = asyncio.create_task(work(channel, state_dir, history, round))
                await asyncio.wait([busy], timeout=dice.uniform(0.2, 1.5))
                assert not busy.done(), busy.exception()
                os.kill(process.pid, signal.SIGKILL)
                await asyncio.wait([busy])
                error = busy.exception()
                assert error is not None
                if not dead(error):
                    raise error
        finally:
            process.kill()
            process.wait()
        lost += powerloss.cut(state_dir / "storage", seen)
        # The check recovers and closes the database, with fsyncs that nobody watches: from then
        # on all of it is durable.
        await check(state_dir, history)
        for file in seen.iterdir():
            file.unlink()
        _remember(state_dir / "storage", seen)
    assert lost > 0, "no cut took anything away"
    assert history.steps > CUTS


def _remember(root: Path, seen: Path) -> None:
    """Take what is there for durable."""
    for path in [root, *root.rglob("*")]:
        inode = path.lstat().st_ino
        if path.is_dir():
            lines = [f"{entry.lstat().st_ino} {entry.name}\n" for entry in path.iterdir()]
            (seen / f"d.{inode}").write_text("".join(lines))
        else:
            (seen / f"f.{inode}").write_bytes(path.read_bytes())
