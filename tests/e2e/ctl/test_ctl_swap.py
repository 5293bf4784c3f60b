"""`llmos-ctl model swap` and `model load` with options, end to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import httpx
import pytest
from tiny_text import text_files, text_onnx
from whole_os import WholeOS


@pytest.fixture(scope="module")
def two(os_up: WholeOS, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with two versions, and an alias at the first."""
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("swap")
        text_files(folder)
        text_onnx(folder / "model.onnx", seed)
        os_up.ok("model", "import", str(folder), "--name", "swapped")
    os_up.ok("model", "alias", "set", "swapped@1", "prod")
    return "swapped"


def loaded(os_up: WholeOS) -> dict[str, str]:
    """Return the states of the versions."""
    return {f"{m['name']}@{m['version']}": m["state"] for m in os_up.json("model", "ls", "swapped")}


def vector(os_up: WholeOS, model: str) -> list[float]:
    body = {"model": model, "input": "hello there"}
    answer = httpx.post(f"{os_up.gateway()}/v1/embeddings", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return [round(x, 5) for x in answer.json()["data"][0]["embedding"][:8]]


def test_calls_move_without_a_gap_and_back(os_up: WholeOS, two: str) -> None:
    first, second = vector(os_up, f"{two}@1"), vector(os_up, f"{two}@2")
    assert first != second
    assert vector(os_up, f"{two}@prod") == first
    over = threading.Event()
    seen: list[list[float]] = []

    def ask() -> None:
        while not over.is_set():
            seen.append(vector(os_up, f"{two}@prod"))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        said = os_up.ok("model", "swap", f"{two}@prod", "2", "--check", "hello", "--within", "30")
        assert "means version 2 now (was 1)" in said
        assert vector(os_up, f"{two}@prod") == second
        os_up.ok("model", "swap", f"{two}@prod", "1")
    finally:
        over.set()
        asking.join()
    assert all(v in (first, second) for v in seen), "every call was answered by one of them"
    assert vector(os_up, f"{two}@prod") == first


def test_a_version_that_fails_the_check_changes_nothing(os_up: WholeOS, two: str) -> None:
    before = vector(os_up, f"{two}@prod")
    os_up.ok("model", "unload", f"{two}@2")
    words = ("model", "swap", f"{two}@prod", "2", "--check", "hello", "--expect", "impossible")
    done = os_up.ctl(*words)
    assert done.returncode != 0
    assert "did not pass the check, so nothing was moved" in done.stderr
    assert vector(os_up, f"{two}@prod") == before
    assert "READY" not in loaded(os_up)[f"{two}@2"].upper()


def test_the_old_one_can_be_kept_for_a_rollback(os_up: WholeOS, two: str) -> None:
    vector(os_up, f"{two}@prod")
    command = [sys.executable, "-m", "llmos.clients.ctl", "--state-dir", str(os_up.state_dir)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}
    swap = subprocess.Popen(
        [*command, "model", "swap", f"{two}@prod", "2", "--keep", "300"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=env,
    )
    try:
        assert swap.stderr is not None
        assert any("is kept loaded" in line for line in swap.stderr)
        assert {s.upper() for s in loaded(os_up).values()} == {"READY"}
        os_up.ok("model", "alias", "rollback", f"{two}@prod")
    finally:
        swap.send_signal(signal.SIGINT)
        swap.wait(30)
        swap.communicate()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("swapped", "2"), "written name@alias"),
        (("swapped@canary", "2"), "model alias set"),
        (("swapped@prod", "9"), "swapped"),
        (("swapped@prod", "2", "--expect", "("), "regular expression"),
    ],
)
def test_a_swap_that_cannot_be_says_why(
    os_up: WholeOS, two: str, words: tuple[str, ...], said: str
) -> None:
    done = os_up.ctl("model", "swap", *words)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_options_hold_for_the_worker_that_replaces_a_dead_one(os_up: WholeOS, two: str) -> None:
    os_up.ctl("model", "unload", f"{two}@2")
    options = ("--threads", "1", "--device", "cpu")
    model = os_up.json("model", "load", f"{two}@2", *options)
    assert model["options"]["threads"] == 1
    cores = os.sched_getaffinity(model["pid"])
    assert len(cores) == 1
    os.kill(model["pid"], signal.SIGKILL)
    vector(os_up, f"{two}@2")
    again = os_up.json("model", "load", f"{two}@2")
    assert again["pid"] != model["pid"]
    assert again["options"]["threads"] == 1
    assert len(os.sched_getaffinity(again["pid"])) == 1
    done = os_up.ctl("model", "load", f"{two}@2", "--threads", "2")
    assert "loaded with other options; unload it first" in done.stderr
    os_up.ok("model", "unload", f"{two}@1")
    done = os_up.ctl("model", "load", f"{two}@1", "--device", "cuda:9")
    assert "cuda:9" in done.stderr
    os_up.ok("model", "unload", f"{two}@2")
    assert len(os.sched_getaffinity(os_up.json("model", "load", f"{two}@2")["pid"])) > 1
