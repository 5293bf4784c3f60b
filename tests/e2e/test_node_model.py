"""Node.js asks a real language model through a whole OS."""

from __future__ import annotations

import pytest
from node_process import CLI, require_node, run_node
from whole_os import WholeOS

pytestmark = pytest.mark.node


def test_a_real_model_answers_node(os_up: WholeOS) -> None:
    require_node()
    question = ["smollm2", "What is the capital of France?"]
    options = ["--max-tokens", "24", "--temperature", "0"]
    done = run_node(CLI, "generate", *question, *options, address=os_up.kernel)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert done.stderr.endswith(" tokens\n")
    listed = run_node(CLI, "models", address=os_up.kernel)
    assert "smollm2@1\tready\tgenerate\ttorch" in listed.stdout.splitlines()
    empty = run_node(CLI, "generate", "smollm2", "", "--raw", address=os_up.kernel)
    assert empty.returncode == 1
    assert empty.stderr.startswith("llmos-node: INVALID_ARGUMENT EMPTY_PROMPT: ")
