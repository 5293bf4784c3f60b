"""Every metric that the dashboard and the alerts read is there after some work, and well formed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from whole_os import WholeOS

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "llmos.json"
ALERTS = DEPLOY / "prometheus" / "llmos-alerts.yml"
_NAME = re.compile(r"\b(?:llmos|vllm|nv|process)[a-z0-9_:]*_[a-z0-9_]+\b")


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text())


def expressions() -> list[str]:
    panels = [t["expr"] for panel in dashboard()["panels"] for t in panel["targets"]]
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return panels + [rule["expr"] for group in groups for rule in group["rules"]]


def metrics(system: WholeOS) -> dict[str, list[Any]]:
    text = httpx.get(system.gateway() + "/metrics", timeout=30).text
    samples: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample)
    return samples


def test_what_is_read_is_there(os_up: WholeOS) -> None:
    body = {"model": "smollm2", "prompt": "One, two,", "max_tokens": 4, "temperature": 0}
    reply = httpx.post(os_up.gateway() + "/v1/completions", json=body, timeout=120)
    assert reply.status_code == 200
    found = metrics(os_up)
    read = {name for expr in expressions() for name in _NAME.findall(expr)}
    assert len(read) > 12
    # Some have no sample before something waits or fails; they are announced all the same.
    text = httpx.get(os_up.gateway() + "/metrics", timeout=30).text
    announced = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    assert not read - set(found) - announced
    for alias in (
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:time_per_output_token_seconds_sum",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:request_queue_time_seconds_bucket",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
        "vllm:num_requests_running",
    ):
        whose = {(s.labels["model_name"], s.labels["tenant"]) for s in found[alias]}
        assert ("smollm2@1", "local") in whose, alias  # others' models may be there, too
    ended = {s.labels["finished_reason"] for s in found["vllm:request_success_total"]}
    assert ended & {"stop", "length"}


def test_times_add_up(os_up: WholeOS) -> None:
    body = {"model": "smollm2", "prompt": "One, two,", "max_tokens": 8, "temperature": 0}
    httpx.post(os_up.gateway() + "/v1/completions", json=body, timeout=120)
    found = metrics(os_up)

    def total(name: str) -> float:
        return float(sum(s.value for s in found[f"llmos_gateway_{name}_seconds_sum"]))

    parts = total("queue") + total("prefill") + total("decode")
    assert parts == pytest.approx(total("generation"), rel=0.1, abs=0.3)


def test_the_dashboard_is_one() -> None:
    found = dashboard()
    assert found["uid"] == "llmos"
    ids = [panel["id"] for panel in found["panels"]]
    assert len(set(ids)) == len(ids) >= 10
    for panel in found["panels"]:
        assert panel["targets"] and panel["title"]
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24


def test_promtool_takes_every_expression(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (make system-deps)")
    written = [t["expr"] for panel in dashboard()["panels"] for t in panel["targets"]]
    panels = [
        {"record": f"panel:{n}", "expr": expr.replace("$__rate_interval", "5m")}
        for n, expr in enumerate(written)
    ]
    drawn = tmp_path / "panels.yml"
    drawn.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": panels}]}))
    command: list[str | Path] = [promtool, "check", "rules", ALERTS, drawn]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(panels)} rules found" in done.stdout
