"""Guards of the layout: sizes, what the kernel imports, what is importable, what files may say."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = "src/llmos/api/"
CODE = {".py", ".pyi", ".js", ".proto", ".sh"}
LONGEST_FILE = 400
# The public protocol is one file: its package `inference` and our Python path for it differ, so
# that no second file could be imported under both (scripts/protos.sh).
# execution.proto is half comments and will be split by what its messages are about.
ONE_FILE = {
    "proto/inference/open_inference.proto",
    "proto/llmos/api/execution/v1/execution.proto",
}
KERNEL_LINES = 2500
NOT_IN_KERNEL = ("torch", "numpy", "onnxruntime", "sqlite3", "starlette", "uvicorn", "http.server")
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
# Written in parts, so that this file does not contain what it looks for.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w./-])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me/[a-z][\w-]*)/",
    "a package registry": r"registry\.npm" + r"js|python" + r"hosted\.org|pypi\.org/sim" + r"ple",
    "an index address": r"--(?:extra-)?index" + r"-url|find-li" + r"nks\s*=\s*http",
    "a resolved lock entry": r'"resol' + r'ved"\s*:',
}


def tracked() -> list[Path]:
    """Return the files of the project, without links."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("this is no git checkout")
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    return [file for file in files if file.is_file() and not file.is_symlink()]


def code_lines(file: Path) -> int:
    """Return how many lines hold code or docstrings: neither blank nor comment."""
    text = file.read_text()
    lines = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return sum(bool(line.strip()) for i, line in enumerate(text.splitlines(), 1) if i in lines)


def test_code_is_counted_as_people_do(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(
        '"""Doc."""\n\n# why\nx = (\n    1,\n)\n\n\ndef f():\n    """Doc\n\n    more."""\n'
    )
    assert code_lines(file) == 7


def test_the_kernel_stays_small() -> None:
    count = sum(code_lines(file) for file in (ROOT / "kernel").rglob("*.py"))
    assert 500 < count < KERNEL_LINES


def test_no_file_is_long() -> None:
    long = {}
    for file in tracked():
        name = file.relative_to(ROOT).as_posix()
        if file.suffix in CODE and not name.startswith(GENERATED):
            lines = len(file.read_text().splitlines())
            if lines > LONGEST_FILE and name not in ONE_FILE:
                long[name] = lines
    assert not long


def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=60
    )


def test_the_kernel_process_imports_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys, llmos.kernel.__main__\n"
        f"print([name for name in {NOT_IN_KERNEL!r} if name in sys.modules])\n"
        "print(sorted(name for name in sys.modules if name.startswith('llmos.servers')))"
    )
    done = run(code, tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")


@pytest.mark.parametrize("name", ["kernel", "servers", "clients", "proto"])
def test_folders_are_not_packages_of_their_own(name: str, tmp_path: Path) -> None:
    done = run(f"import {name}", tmp_path)
    assert f"No module named '{name}'" in done.stderr


def test_nothing_of_one_machine_is_in_the_project() -> None:
    found = []
    for file in tracked():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue  # a binary file
        for what, pattern in FORBIDDEN.items():
            for match in re.finditer(pattern, text):
                line = text.count("\n", 0, match.start()) + 1
                where = f"{file.relative_to(ROOT)}:{line}"
                found.append(f"{where}: {what}: {match.group()}")
    assert not found
