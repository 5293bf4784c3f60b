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
    assert out.stdout.strip() == "[]"


def test_without_the_extra_the_zygote_still_starts_and_the_manager_says_what_is_missing() -> None:
    """In a process where the extra's packages cannot be found."""
    code = (
        "import sys\n"
        "EXTRA = ('numpy', 'torch', 'onnxruntime', 'tokenizers', 'setproctitle', 'gguf')\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in EXTRA:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "import llmos.servers.execution.__main__\n"
        "from llmos.servers.execution.engine import select\n"
        "select.find_spec = lambda name: None if name in EXTRA else find(name)\n"
        "from llmos.lib.errors import FailedPrecondition\n"
        "try:\n"
        "    select.require('m@1', 'gguf', 'generate')\n"
        "except FailedPrecondition as exc:\n"
        "    print(exc.reason)\n"
        "import llmos.servers.execution.zygote.server\n"
        "from llmos.servers.execution.zygote.imports import preload\n"
        "print('torch' in preload()[1])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.split() == ["MISSING_EXTRA", "True"], out.stderr
