"""The commands of README.md, run as they are written: the tour cannot rot."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_process import require_node
from tiny_text import text_files, text_onnx
from whole_os import WholeOS

ROOT = Path(__file__).parents[2]
LIMIT_S = 500  # of a very busy machine; the tour takes half a minute of a quiet one
EXPORT = "llmos-ctl job submit export-onnx all-minilm-l6-v2 --watch"


def commands(heading: str) -> str:
    """Return the shell code of a section."""
    text = (ROOT / "README.md").read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    system = WholeOS(tmp_path / "state")
    try:
        yield system.state_dir
    finally:
        system.kill_all()


def bash(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LLMOS_", "MAKE"))}
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return subprocess.run(  # `timeout` ends the whole process group, and so the pipes
        ["timeout", "-k", "5", str(LIMIT_S), "bash", "-euo", "pipefail", "-c", code],
        cwd=ROOT,
        env={**kept, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def changed(code: str, changes: dict[str, str]) -> str:
    for written, meant in changes.items():
        assert written in code, f"README.md no longer has {written!r}"
        code = code.replace(written, meant)
    return code


@pytest.mark.timeout(LIMIT_S + 60)
def test_the_tour(state: Path, tmp_path: Path) -> None:
    """Everything but the job, which tests/e2e/onnx runs: an ONNX encoder is imported instead."""
    require_node()
    (ready := tmp_path / "ready").touch()  # newer than what it is made of: nothing is installed
    folder = tmp_path / "encoder"
    folder.mkdir()
    text_onnx(folder / "model.onnx")
    text_files(folder)
    web, kernel = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    code = changed(
        commands("A five-minute tour"),
        {
            EXPORT: f"llmos-ctl model import {folder} --name all-minilm-l6-v2",
            "source .venv/bin/activate\n": "",
            "$PWD/.llmos": str(state),
            ".llmos/": f"{state}/",
            "127.0.0.1:8080": web,
            "127.0.0.1:50051": kernel,
            "--max-tokens 80": "--max-tokens 40",
            "sleep 3": "sleep 2",
            "npm ci --prefix clients/node\n": "",  # done when it was needed
        },
    )
    done = bash(
        code,
        MAKEFLAGS=f"-- READY={ready} BIN={Path(sys.executable).parent} STATE={state}",
        LLMOS_GATEWAY_PORT=web.partition(":")[2],
        LLMOS_KERNEL_TCP=kernel,
        LLMOS_EXECUTION_THREADS="1",
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    out = done.stdout
    assert out.count("Paris") == 3 and "Tokyo" in out, out  # llmos-ctl, curl, node; openai
    assert "data: [DONE]" in out and "not a token lost" in out
    assert "COSINE TO 0" in out and "True (1, " in out
    assert "LLM OS is ready." in out and "LLM OS is down." in out
    assert "Traceback" not in out + done.stderr


def test_a_server_alone(tmp_path: Path) -> None:
    code = commands("The processes").replace("/tmp/llmos-alone", str(tmp_path / "alone"))
    done = bash(code)
    assert done.returncode == 0, done.stderr
    assert "Imported smollm2@1" in done.stdout and "8192 tokens" in done.stdout
    assert not (tmp_path / "alone").exists()


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md", "docs/benchmarks.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
