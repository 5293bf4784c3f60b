"""The delivery protocol's model holds its properties, and notices when a rule is broken.

The model is proofs/delivery.pml; it says what its properties mean.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[3] / "proofs" / "delivery.pml"
MISSING = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"needs {' and '.join(MISSING)}: apt-get install spin gcc libc6-dev"
)
# Property of the model -> what spin prints of its assertion.
PROPERTIES = {
    "no_call_is_answered_twice": "(answers[n]==1)",
    "at_most_once": "((call==0)||(runs[call]==1))",
    "answers_are_truthful": "[n]>0)",
    "credits_hold": "!(busy)",
    "no_call_is_lost": "((answers[0]==1)&&(answers[1]==1))",
    "no_credit_is_leaked": "((used[0]==0)&&(used[1]==0))",
}
MUTATIONS = {
    "REDISPATCH_ALL": "at_most_once",
    "RESEND_ALL": "at_most_once",
    "FORGET_TO_RESEND": "no_call_is_lost",
    "PASS_LATE_ANSWERS": "no_call_is_answered_twice",
    "FORGET_CREDIT": "no_credit_is_leaked",
}


def verify(folder: Path, *defined: str, loops: bool = False) -> str:
    """Return what the verifier of the model says, with macros defined as for a compiler."""
    subprocess.run(
        ["spin", *(f"-D{name}" for name in defined), "-a", str(MODEL)],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    kind = "-DNP" if loops else "-DSAFETY"
    subprocess.run(["gcc", "-w", kind, "-o", "pan", "pan.c"], cwd=folder, check=True)
    command = ["./pan", "-m100000", *(["-l"] if loops else [])]
    done = subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=120
    )
    assert "max search depth too small" not in done.stdout + done.stderr
    return done.stdout


def test_every_property_holds_in_every_run(tmp_path: Path) -> None:
    said = verify(tmp_path)
    assert "errors: 0" in said, said
    # Every rule of the model takes part.
    for process in ("Client", "Kernel", "Server"):
        unreached = said.split(f"unreached in proctype {process}")[1].split("unreached in")[0]
        lines = [line for line in unreached.splitlines() if "line" in line or ":" in line]
        assert all("-end-" in line for line in lines), unreached


@pytest.mark.parametrize("without", ["DEATHS", "CRASHES"])
def test_every_run_ends(tmp_path: Path, without: str) -> None:
    assert "errors: 0" in verify(tmp_path, f"{without}=0", loops=True)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_rule_is_noticed(tmp_path: Path, mutation: str) -> None:
    said = verify(tmp_path, mutation)
    assert f"assertion violated {PROPERTIES[MUTATIONS[mutation]]}" in said, said
