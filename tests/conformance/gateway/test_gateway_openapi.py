"""The published OpenAPI document, and schemathesis on it: whatever is sent, nothing fails.

LLMOS_SCHEMATHESIS_CASES: how many cases about (120; the full campaign is 2000).
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
from echo_execution import EchoBackend, EchoModel
from starlette.routing import Route
from whole_os import WholeOS

from llmos.servers.gateway import openapi
from llmos.servers.gateway.app import routes_of
from llmos.servers.gateway.config import GatewayConfig
from llmos.servers.gateway.schema import ChatBody, CompletionBody, EmbeddingBody, parse

CASES = int(os.environ.get("LLMOS_SCHEMATHESIS_CASES", "120"))
LIMIT_S = 900 + 3 * CASES  # making up a case takes most of the time; a busy machine needs seconds
SUPPORT = Path(__file__).parents[2] / "support"
# Streams that never end, and what would stop the OS for everybody who tests it.
LEFT_OUT = r"/(watch|events|drain|restart|unload|limits)$|^/llmos/v1/logs"


def test_the_document_has_the_routes_of_the_application() -> None:
    def channels(server: str) -> Any:
        raise AssertionError("nothing is called")

    routes = routes_of(EchoBackend(EchoModel()), GatewayConfig(), channels)
    served = {
        (method.lower(), re.sub(r":\w+}", "}", route.path))
        for route in routes
        if isinstance(route, Route) and not route.path.startswith("/console")
        for method in (route.methods or set()) - {"HEAD"}
    }
    paths = openapi.document()["paths"]
    assert {(method, path) for path, ops in paths.items() for method in ops} == served


def test_the_document_is_whole() -> None:
    document = openapi.document()
    text = json.dumps(document)
    assert set(re.findall(r'"#/components/schemas/([\w.]+)"', text)) <= set(
        document["components"]["schemas"]
    )
    operations = [op for path in document["paths"].values() for op in path.values()]
    assert len({op["operationId"] for op in operations}) == len(operations)
    for cls in (ChatBody, CompletionBody, EmbeddingBody):
        content = document["paths"][cls.endpoint]["post"]["requestBody"]["content"]
        assert parse(cls, json.dumps(content["application/json"]["example"]).encode())


def statuses_of(report: Path) -> dict[str, list[int]]:
    """Return the statuses of all answers by operation."""
    found: dict[str, list[int]] = {}
    for line in report.read_text().splitlines():
        scenario = json.loads(line).get("ScenarioFinished")
        if scenario is not None:
            recorder = scenario["recorder"]
            statuses = found.setdefault(recorder["label"], [])
            for one in recorder.get("interactions", {}).values():
                statuses.append(one["response"]["status_code"])
    return found


@pytest.mark.timeout(LIMIT_S + 60)
def test_nothing_that_is_sent_breaks_it(os_up: WholeOS, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    url = os_up.gateway()
    log = os_up.state_dir / "logs" / "gateway.log"
    before = log.stat().st_size
    document = httpx.get(url + "/openapi.json").json()
    operations = [op for path in document["paths"].values() for op in path.values()]
    # The others have one case each.
    varied = sum(bool(op["parameters"] or "requestBody" in op) for op in operations)
    each = max(1, round((CASES - len(operations) + varied) / varied))
    # The first of each operation says that it can be answered; the others are made up.
    command = [sys.executable, "-m", "schemathesis.cli", "run", url + "/openapi.json"]
    command += ["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"]
    command += ["--phases", "examples,fuzzing", "--exclude-path-regex", LEFT_OUT, "--no-color"]
    command += ["--max-examples", str(each), "--seed", "1", "--request-timeout", "60"]
    command += ["--report", "ndjson", "--report-ndjson-path", "cases.ndjson"]
    command += ["--suppress-health-check", "all", "--no-shrink", "--continue-on-failure"]
    env = {
        **os.environ,
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": str(SUPPORT),
        "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
        "LLMOS_CASES_MODELS": "smollm2,minilm",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    statuses = statuses_of(tmp_path / "cases.ndjson")
    assert sum(len(found) for found in statuses.values()) > CASES // 2
    for path in (ChatBody.endpoint, CompletionBody.endpoint, "/v1/files"):
        assert 200 in statuses[f"POST {path}"]
    assert httpx.get(url + "/readyz").status_code == 200
    assert b"Traceback" not in log.read_bytes()[before:]
