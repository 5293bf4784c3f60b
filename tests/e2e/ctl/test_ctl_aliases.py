"""Models served by alias, end to end: command line, gateway, kernel, execution and storage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
from tiny_text import text_files, text_onnx
from whole_os import WholeOS


def embedded(os_up: WholeOS, model: str) -> list[float]:
    """Return the beginning of a text's vector, from the gateway."""
    body = {"model": model, "input": "hello there"}
    answer = httpx.post(f"{os_up.gateway()}/v1/embeddings", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return [round(x, 5) for x in answer.json()["data"][0]["embedding"][:8]]


def until(os_up: WholeOS, model: str, version: str) -> None:
    """Wait until calls for `model` are answered by `version`: a move takes a moment."""
    wanted, deadline = embedded(os_up, version), time.monotonic() + 60
    while embedded(os_up, model) != wanted:
        assert time.monotonic() < deadline, f"{model} is not {version}"
        time.sleep(0.2)
    mine = os_up.json("embed", model, "hello there")["embeddings"][0]["values"]
    assert [round(x, 5) for x in mine[:8]] == wanted


def test_calls_go_where_the_alias_points(os_up: WholeOS, tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        text_files(folder)
        text_onnx(folder / "model.onnx", seed)
        os_up.ok("model", "import", str(folder), "--name", "aliased")
    done = os_up.ctl("embed", "aliased@prod", "x")
    assert done.returncode == 3 and "llmos-ctl model alias set" in done.stderr
    os_up.ok("model", "alias", "set", "aliased@1", "prod")
    assert embedded(os_up, "aliased@1") != embedded(os_up, "aliased@2")
    until(os_up, "aliased@prod", "aliased@1")
    refused = os_up.ctl("model", "rm", "aliased@1")
    assert refused.returncode == 7 and "alias prod means it" in refused.stderr

    log = (tmp_path / "watched").open("wb")
    command = [sys.executable, "-m", "llmos.clients.ctl", "--state-dir", str(os_up.state_dir)]
    watch = subprocess.Popen(
        [*command, "-o", "json", "model", "watch", "aliased@prod", "--after", "0", "--count", "3"],
        stdout=log,
        env={k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")},
    )
    try:
        moved = os_up.json("model", "alias", "set", "aliased", "prod")
        assert (moved["alias"]["version"], moved["previous_version"]) == (2, 1)
        until(os_up, "aliased@prod", "aliased@2")
        late = os_up.ctl("model", "alias", "set", "aliased@1", "prod", "--expect", "1")
        assert late.returncode == 4 and "somebody else changed it" in late.stderr
        os_up.ok("model", "alias", "rollback", "aliased@prod")
        until(os_up, "aliased@prod", "aliased@1")
        assert watch.wait(30) == 0
    finally:
        watch.kill()
        watch.wait()
        log.close()
    seen = [json.loads(line) for line in (tmp_path / "watched").read_text().splitlines()]
    assert [move["version"] for move in seen] == [1, 2, 1]
    history = os_up.json("model", "alias", "history", "aliased@prod")
    assert [move["kind"] for move in history] == ["rollback", "set", "set"]
    assert os_up.json("model", "alias", "ls", "aliased")[0]["version"] == 1

    tags = os_up.json("model", "tag", "aliased@1", "team=x", "reviewed")
    assert tags == {"team": "x", "reviewed": ""}
    listed = os_up.json("model", "ls", "--tag", "team=x", "--task", "embed", "--search", "alia")
    assert [version["version"] for version in listed] == [1]
    assert os_up.ctl("model", "ls", "--task", "nonsense").returncode == 2
    assert os_up.json("model", "lineage", "aliased@prod")["nodes"][0]["ref"] == "aliased@1"
    lease = os_up.json("model", "lease", "take", "aliased@2", "--ttl", "600")
    held = {one["id"]: one["holder"] for one in os_up.json("model", "lease", "ls", "aliased@2")}
    assert held[lease["id"]] == "llmos-ctl"
    assert os_up.ctl("model", "rm", "aliased@2", "--force").returncode == 7
    os_up.ok("model", "lease", "renew", lease["id"])
    os_up.ok("model", "lease", "release", lease["id"])
    assert "prod" in os_up.ok("model", "show", "aliased@1")
    os_up.ok("model", "alias", "rm", "aliased@prod")
    os_up.ok("model", "load", "aliased@1")
    serving = os_up.ctl("model", "rm", "aliased@1")
    assert serving.returncode == 7 and "unload the model" in serving.stderr
    os_up.ok("model", "unload", "aliased@1")
    os_up.ctl("model", "unload", "aliased@2")
    os_up.ok("model", "rm", "aliased@2")
    os_up.ok("model", "rm", "aliased@1")
