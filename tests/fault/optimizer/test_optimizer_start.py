"""How the optimizer refuses to start: one sentence, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def start(state: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmos.servers.optimizer", "--kernel", "none"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}
    return subprocess.run(
        [*command, "--state-dir", str(state), *flags],
        capture_output=True,
        text=True,
        timeout=30,
        env=env,
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "pass --peers storage=ADDRESS"),
        (["--peers", "storage=unix:/x", "--parallel", "0"], "parallel must be at least 1"),
        (["--peers", "storage=unix:/x", "--listen", "unix:/nowhere/x"], "Cannot listen on"),
    ],
)
def test_bad_settings(tmp_path: Path, flags: list[str], says: str) -> None:
    done = start(tmp_path, *flags)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert line.startswith("llmos-optimizer: ") and says in line


def test_a_state_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "optimizer").write_text("a file where the folder should be")
    done = start(tmp_path, "--peers", "storage=unix:/x")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Cannot write" in done.stderr
