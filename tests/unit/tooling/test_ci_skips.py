"""In CI a skip fails the run: the hook of tests/conftest.py, run by a real pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[2] / "conftest.py"


def run(folder: Path, body: str, ci: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST.read_text())
    (folder / "test_it.py").write_text("import pytest\n" + body)
    support = CONFTEST.parent / "support"  # which the hook's module imports from
    ini = f"[pytest]\nmarkers = gpu: needs a GPU\npythonpath = {support}\n"
    (folder / "pytest.ini").write_text(ini)
    env = {**os.environ, "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )


PASSES = "def test_ok():\n    pass\n"
SKIPS = 'def test_x():\n    pytest.skip("no node")\n'
ALLOWED = """
@pytest.mark.gpu
def test_gpu():
    pytest.skip("no gpu")

@pytest.mark.xfail
def test_xfail():
    assert False
"""


@pytest.mark.parametrize(
    ("body", "ci", "code"), [(SKIPS, "true", 1), (SKIPS, "", 0), (ALLOWED, "true", 0)]
)
def test_a_skip_fails_ci_only(tmp_path: Path, body: str, ci: str, code: int) -> None:
    done = run(tmp_path, PASSES + body, ci)
    assert done.returncode == code, done.stdout
    assert ("skipped in CI" in done.stdout) == (code == 1)
