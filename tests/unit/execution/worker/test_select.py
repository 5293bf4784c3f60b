from __future__ import annotations

import subprocess
import sys

import pytest

from llmos.lib.errors import FailedPrecondition
from llmos.servers.execution.engine import select
from llmos.servers.execution.engine.base import ModelSpec


def test_every_listed_engine_can_be_imported() -> None:
    for format, task in [("gguf", "generate"), ("safetensors", "generate"), ("onnx", "embed")]:
        module = select.module_for(ModelSpec("m@1", format, task, {}))
        assert callable(module.load) and callable(module.check) and callable(module.estimate_bytes)


def test_what_no_engine_runs_is_told_with_what_would() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        select.module_for(ModelSpec("mini@1", "safetensors", "embed", {}))
    assert caught.value.reason == "NO_ENGINE"
    assert "safetensors" in caught.value.message and "ONNX" in caught.value.message
    assert select.engine_for("", "") == ""


def test_the_manager_imports_no_engine() -> None:
    code = (
        "import sys, llmos.servers.execution.__main__\n"
        "print([m for m in ('torch', 'onnxruntime', 'tokenizers', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert out.stdout.strip() in ("[]", "['numpy']")
