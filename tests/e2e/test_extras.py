"""One wheel, one extra per process: what `pip install llmos[kernel]` brings and what it lacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_process import KernelProcess

ROOT = Path(__file__).parents[2]
SOURCES = ("kernel", "servers", "clients", "src", "pyproject.toml", "README.md", "LICENSE")
HEAVY = {
    "torch", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "transformers", "tokenizers",
    "safetensors", "gguf", "starlette", "uvicorn", "typer", "nvidia-ml-py",
}  # fmt: skip


def pip(*args: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    copy.mkdir()
    ignore = shutil.ignore_patterns("node_modules", "__pycache__", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, copy / name)
    pip("wheel", "--no-deps", "-w", str(folder), str(copy))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with `llmos[kernel]` and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    constraints = str(ROOT / "constraints.txt")
    pip("--python", str(folder), "install", "-c", constraints, f"llmos[kernel] @ {wheel.as_uri()}")
    return folder / "bin"


def run(bare: Path, name: str, *args: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LLMOS_", "PYTHON"))}
    command = [str(bare / name), *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_the_kernel_brings_no_model_library(bare: Path) -> None:
    listed = json.loads(pip("--python", str(bare.parent), "list", "--format", "json"))
    names = {entry["name"].lower().replace("_", "-") for entry in listed}
    assert {"llmos", "grpcio", "protobuf"} <= names
    assert not names & HEAVY
    assert not {name for name in names if name.startswith(("nvidia", "onnx"))}


def test_the_kernel_explains_itself(bare: Path) -> None:
    done = run(bare, "llmos-kernel", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--state-dir" in done.stdout


@pytest.fixture
def kernel(bare: Path, tmp_path: Path) -> Iterator[KernelProcess]:
    process = KernelProcess(tmp_path, python=bare / "python")
    try:
        process.start()
        yield process
    finally:
        process.stop()


def test_the_kernel_runs_there(kernel: KernelProcess, tmp_path: Path) -> None:
    started = time.monotonic()
    kernel.stop()
    assert time.monotonic() - started < 8, kernel.log.read_text()
    assert "kernel stopped" in kernel.log.read_text()


# Execution starts without its extra and says which one a model needs.
@pytest.mark.parametrize("name", ["storage", "gateway", "ctl"])
def test_without_its_extra_a_process_says_which(bare: Path, name: str, tmp_path: Path) -> None:
    args = ["--help"] if name == "ctl" else ["--state-dir", str(tmp_path), "--kernel", "none"]
    done = run(bare, f"llmos-{name}", *args)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]  # logs
    assert len(lines) == 1, done.stderr
    assert f"pip install 'llmos[{name}]'" in lines[0]
    assert "is not installed" in lines[0]
    assert "Traceback" not in done.stderr


def test_the_wheel_has_the_python_code_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    for path in ("llmos/kernel/__main__.py", "llmos/servers/storage/", "llmos/api/kernel/v1/"):
        assert any(name.startswith(path) for name in names)
    built = "llmos/servers/gateway/console/dist/"  # what `make console` made of the console
    others = [name for name in names if not name.startswith(built)]
    for path in ("clients/node", "node_modules", ".js", "tests/"):
        assert not [name for name in others if path in name]
