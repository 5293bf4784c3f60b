"""docs/examples/verses.md on few verses: a LoRA adapter served by name, and a translator."""

from __future__ import annotations

import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from whole_os import WholeOS

SCRIPT = Path(__file__).parents[3] / "examples" / "verses" / "verses.py"
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        shutil.which("mod2imp") is None,
        reason="needs sword-text-web, sword-text-sparv, libsword-utils",
    ),
]


def verses(os_up: WholeOS, folder: Path, name: str, count: int, held: float) -> None:
    """Import the first verses as a data set."""
    file = folder / f"{name}.jsonl"
    subprocess.run([sys.executable, str(SCRIPT), str(file), str(count)], check=True, timeout=60)
    shares = ("--split", f"train={1 - held}", "--split", f"test={held}")
    os_up.ok("dataset", "import", str(file), "--name", name, "--text-column", "english", *shares)


def measured(os_up: WholeOS, name: str) -> list[float]:
    """Return a figure of each version that the newest job compared."""
    report = os_up.json("job", "report", os_up.json("job", "ls")[0]["id"])
    return [m["value"] for c in report for m in c["measures"] if m["name"] == name]


def test_a_language_model_learns_a_tone_and_answers_by_name(os_up: WholeOS, tmp_path: Path) -> None:
    verses(os_up, tmp_path, "psalter", 200, 0.04)
    settings = ("--set", "data.tokens=32", "--set", "data.validation_split=test")
    tune = ("fine-tune", "smollm2@1", "psalter", "--name", "tone", "--lora", *settings)
    few = ("--steps", "4", "--batch", "2", "--learning-rate", "0.002")
    os_up.ok("job", "submit", *tune, *few, "-w", timeout=500)
    before, after = measured(os_up, "perplexity")
    assert 1 < after < before
    ask = ("run", "smollm2@1", "And it came to", "--raw", "--temperature", "0", "--max-tokens", "8")
    plain, adapted = os_up.json(*ask), os_up.json(*ask, "--adapter", "tone")
    assert adapted["text"] and adapted["model"] == plain["model"]
    assert os_up.json(*ask)["text"] == plain["text"]
    lineage = os_up.json("model", "lineage", "tone")
    assert [node["ref"] for node in lineage["nodes"]] == ["tone@1", "smollm2@1"]
    (data,) = lineage["datasets"]
    stored = [(Path(split["path"]), split["sha256"]) for split in data["splits"]]
    assert stored and all(sha256(p.read_bytes()).hexdigest() == told for p, told in stored)


def test_a_translator_learns(os_up: WholeOS, tmp_path: Path) -> None:
    verses(os_up, tmp_path, "parallel", 1000, 0.03)
    size = ("encoder_decoder.width=64", "encoder_decoder.layers=1", "data.vocabulary=600")
    how = ("data.tokens=24", "training.warmup=0.1", 'data.features=["english"]')
    fields = [word for field in (*size, *how) for word in ("--set", field)]
    train = ("train", "translator", "parallel", "--network", "encoder_decoder")
    for steps in ("2", "120"):
        few = ("--steps", steps, "--batch", "16", "--learning-rate", "0.004")
        os_up.ok("job", "submit", *train, "--target", "spanish", *few, *fields, "-w", timeout=500)
    compare = ("evaluate", "translator@1", "translator@2", "--data", "parallel", "--rows", "24")
    how_answered = ("--targets", "spanish", "--beams", "2", "--max-tokens", "48", "--skip-speed")
    os_up.ok("job", "submit", *compare, *how_answered, "-w", timeout=200)
    early, late = measured(os_up, "chrf")
    assert late > early + 2  # it says words of Spanish; so little training makes no sentences
