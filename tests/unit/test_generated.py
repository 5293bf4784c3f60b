"""The checked-in code in src/llmos/api is what the protos generate today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
API = "llmos/api"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    command = ["sh", str(ROOT / "scripts/protos.sh"), str(tmp_path)]
    env = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    subprocess.run(command, check=True, env=env)
    fresh, ours = contents(tmp_path / API), contents(ROOT / "src" / API)
    different = sorted(n for n in fresh.keys() | ours.keys() if fresh.get(n) != ours.get(n))
    assert different == [], "run `make protos` and commit what it writes"
