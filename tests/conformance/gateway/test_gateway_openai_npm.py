"""OpenAI's client for Node.js, as npm has it, against the gateway."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from echo_execution import EchoModel
from gateway_process import Gateway

FOLDER = Path(__file__).parent / "npm"
pytestmark = pytest.mark.node


def run(*command: str, cwd: Path) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed (`make system-deps` installs it)")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_npm_client(echo_gateway: tuple[Gateway, EchoModel], tmp_path: Path) -> None:
    gateway, model = echo_gateway
    shutil.copytree(FOLDER, tmp_path / "npm", ignore=shutil.ignore_patterns("node_modules"))
    run("npm", "ci", "--no-audit", "--no-fund", cwd=tmp_path / "npm")
    cancelled = model.cancelled
    out = json.loads(run("node", "check.js", gateway.url, cwd=tmp_path / "npm"))

    assert out["whole"] == ["a b c", "stop", 6]
    assert out["pieces"] == ["a", " b", " c"] and out["streamedTokens"] == 3
    assert out["completions"] == ["x y", "z"]
    one, two = out["embeddings"]
    assert one == pytest.approx([0.6, 0.8, 1.0]) and two == pytest.approx([0.6, 0.8, 2.0])
    assert {"echo", "echo@1", "vec"} <= set(out["models"])
    assert out["error"] == ["NotFoundError", 404, "model_not_found", True]
    kind, status, took_ms = out["busy"]
    assert (kind, status) == ("RateLimitError", 429)
    assert took_ms >= 100, "two retries, each after the 50 ms that the answer asks for"
    deadline = time.monotonic() + 60
    while model.cancelled == cancelled:
        assert time.monotonic() < deadline, "the generation goes on without a client"
        time.sleep(0.02)
