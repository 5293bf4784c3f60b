"""llmos-ctl dataset budget: what private jobs spend of a data set, and that it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from whole_os import WholeOS


@pytest.mark.timeout(300)
def test_private_jobs_draw_on_a_budget(os_up: WholeOS, tmp_path: Path) -> None:
    rows = [json.dumps({"x": i / 40, "y": i / 20}) for i in range(40)]
    (tmp_path / "secret.jsonl").write_text("\n".join(rows))
    os_up.ok("dataset", "import", str(tmp_path / "secret.jsonl"), "--name", "secret")
    assert os_up.json("dataset", "budget", "secret") == {"dataset": "secret@1", "left": 10.0} | {
        "epsilon": 10.0,
        "spent": 0.0,
        "jobs": [],
    }
    os_up.ok("dataset", "budget", "secret", "--set", "3")
    train = ("job", "submit", "train", "line", "secret", "--network", "linear", "--target", "y")
    private = (*train, "--steps", "4", "--batch", "8", "--epsilon", "2", "-w")
    os_up.ok(*private, timeout=200)
    found = os_up.json("dataset", "budget", "secret")
    assert 0 < found["spent"] <= 2 and found["left"] == pytest.approx(3 - found["spent"])
    assert [one["job"] for one in found["jobs"]] == [os_up.json("job", "ls")[0]["id"]]
    refused = os_up.ctl(*private, timeout=200)
    assert refused.returncode != 0 and "of 3 is left" in " ".join(refused.stderr.split())
    shown = os_up.ok("dataset", "budget", "secret@1")
    assert "SECRET@1" in shown and "of 3" in shown


def test_a_budget_of_nothing(os_up: WholeOS) -> None:
    done = os_up.ctl("dataset", "budget", "no-such-data")
    assert done.returncode != 0 and "no-such-data" in done.stderr and "Traceback" not in done.stderr
