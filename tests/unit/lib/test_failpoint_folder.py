"""Failpoints that are armed by files, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from llmos.lib import failpoint

PASSES = "from llmos.lib import failpoint; [failpoint.hit('a/b') for _ in range(3)]; print('alive')"


def passes(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PASSES],
        env={**os.environ, failpoint.VARIABLE: str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_one_process_dies_at_the_count_and_the_next_lives(tmp_path: Path) -> None:
    (tmp_path / "a_b").write_text("3")
    for code, said in ((-signal.SIGKILL, ""), (0, "alive\n")):
        with passes(tmp_path) as process:
            assert (process.communicate(timeout=30)[0], process.returncode) == (said, code)
    assert [file.name for file in tmp_path.iterdir()] == ["a_b.taken"]


def test_a_process_waits_until_it_is_released(tmp_path: Path) -> None:
    (tmp_path / "a_b").write_text("1 wait")
    with passes(tmp_path) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "a_b.taken").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.poll() is None
        (tmp_path / "a_b.taken").unlink()
        assert process.communicate(timeout=30)[0] == "alive\n"


def test_a_count_that_is_not_reached_kills_nobody(tmp_path: Path) -> None:
    (tmp_path / "a_b").write_text("4")
    with passes(tmp_path) as process:
        assert process.communicate(timeout=30)[0] == "alive\n"
