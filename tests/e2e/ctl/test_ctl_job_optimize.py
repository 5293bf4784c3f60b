"""llmos-ctl: a model is pruned and measured; its report, and its lineage back to data's bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tiny_text import tiny_bert
from whole_os import WholeOS


@pytest.mark.timeout(400)
def test_prune_evaluate_report_lineage(
    os_up: WholeOS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.dumps({"text": f"a sentence with the number {i}"}) for i in range(12)]
    (tmp_path / "numbers.jsonl").write_text("\n".join(rows))
    os_up.ok("dataset", "import", str(tmp_path / "numbers.jsonl"), "--name", "numbers")
    os_up.ok("model", "import", str(tiny_bert(tmp_path / "m", seed=5)), "--name", "numbered")
    submit = ("job", "submit")
    os_up.ok(*submit, "prune", "numbered@1", "--data", "numbers", "-w", timeout=300)
    said = os_up.ok(
        *(*submit, "evaluate", "numbered@1", "numbered@2", "--data", "numbers", "-w"),
        *("--gate", "cosine_mean>=0.1", "--skip-speed"),
        timeout=300,
    )
    assert "nothing" in said and "COSINE MEAN" in said  # registers nothing, shows what it found
    id = os_up.json("job", "ls")[0]["id"]
    found = os_up.json("job", "report", id)
    assert [c["ref"] for c in found] == ["numbered@1", "numbered@2"]
    assert "COSINE MEAN" in os_up.ok("job", "report", id)
    page = tmp_path / "report.html"
    os_up.ok("job", "report", id, "--to", str(page))
    assert "numbered@2" in page.read_text()
    monkeypatch.setenv("BROWSER", "echo %s")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    opened = os_up.ok("job", "report", id, "--open")
    assert f"file://{tmp_path}" in opened and f"{id}.html" in opened
    lineage = os_up.json("model", "lineage", "numbered@2")
    assert [node["ref"] for node in lineage["nodes"]] == ["numbered@2", "numbered@1"]
    (split,) = lineage["datasets"][0]["splits"]
    stored = Path(split["path"]).read_bytes()
    assert hashlib.sha256(stored).hexdigest() == split["sha256"]
    assert split["sha256"] in os_up.ok("model", "lineage", "numbered@2").replace("\n", "")


def test_a_bad_gate_says_how_to_write_it(os_up: WholeOS) -> None:
    done = os_up.ctl("job", "submit", "prune", "smollm2", "--gate", "f1~0.9")
    assert done.returncode != 0 and "write e.g. f1>=0.9" in done.stderr.replace("\n", " ")
