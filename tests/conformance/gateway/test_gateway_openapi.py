"""schemathesis on the published OpenAPI: whatever is sent, the gateway does not fail.

LLMOS_SCHEMATHESIS_CASES: how many cases (50; the full campaign is 2000).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

CASES = int(os.environ.get("LLMOS_SCHEMATHESIS_CASES", "50"))
LIMIT_S = 900 + 3 * CASES  # making up a case takes most of the time; a busy machine needs seconds


def test_the_document_is_whole(echo_gateway: tuple[Any, Any]) -> None:
    document = httpx.get(echo_gateway[0].url + "/openapi.json").json()
    text = json.dumps(document)
    names = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert names <= set(document["components"]["schemas"])
    ids = [op["operationId"] for path in document["paths"].values() for op in path.values()]
    assert len(set(ids)) == len(ids)
    for path, operations in document["paths"].items():
        for method in operations:
            reply = httpx.request(
                method, echo_gateway[0].url + path.replace("{", "").replace("}", "")
            )
            assert reply.status_code != 405, (method, path)


@pytest.mark.timeout(LIMIT_S + 60)
def test_nothing_that_is_sent_breaks_it(echo_gateway: tuple[Any, Any], tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    url = echo_gateway[0].url
    document = httpx.get(url + "/openapi.json").json()
    # Most cases should reach a model, not end at a name that nobody has.
    names = {"enum": ["echo", "params", "vec", "echo@1", "nope"]}
    for name in ("ChatBody", "CompletionBody", "EmbeddingBody"):
        document["components"]["schemas"][name]["properties"]["model"] = names
    posts = {path: ops for path, ops in document["paths"].items() if path.startswith("/v1")}
    document["paths"] = posts
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", url]
    command += ["--checks", "not_a_server_error", "--phases", "fuzzing", "--no-color"]
    command += ["--max-examples", str(max(1, CASES // 5)), "--seed", "1", "--request-timeout", "20"]
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert httpx.get(url + "/healthz").status_code == 200
    assert "Traceback" not in echo_gateway[0].log_text()
