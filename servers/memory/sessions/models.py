"""What sessions need of models: counts of tokens, and vectors; from the execution server."""

from __future__ import annotations

import array
import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import grpc

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1 import execution_pb2_grpc
from llmos.lib.errors import FailedPrecondition, Internal
from llmos.lib.rpc import from_rpc_error

_CALL_S = 60.0  # a model may have to be loaded first
_AT_ONCE = 8  # texts being tokenized
_BATCH = 64  # texts embedded in one call
_CHARS = 8000  # of a text that is embedded: models take less


class Models(Protocol):
    """See ExecutionModels."""

    async def count(self, model: str, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text."""

    async def embed(self, embedder: str, texts: Sequence[str]) -> tuple[str, list[bytes]]:
        """Return which version made them, and a float32 vector of each text."""


class NoModels:
    """A memory server that is alone."""

    async def count(self, model: str, texts: Sequence[str]) -> list[int]:
        """Raise FailedPrecondition NO_PEER."""
        raise _alone()

    async def embed(self, embedder: str, texts: Sequence[str]) -> tuple[str, list[bytes]]:
        """Raise FailedPrecondition NO_PEER."""
        raise _alone()


class ExecutionModels:
    """Models over a channel. Calls are children of the call being served, and paid by its tenant.

    All methods raise as Execution does: any LLMOSError.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Call on `channel`."""
        self._stub: Any = execution_pb2_grpc.ExecutionStub(channel)

    async def count(self, model: str, texts: Sequence[str]) -> list[int]:
        """See Models."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(text: str) -> int:
            async with gate:
                request = pb.TokenizeRequest(model=model, text=text)
                return len((await self._stub.Tokenize(request, timeout=_CALL_S)).ids)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(text)) for text in texts]
        except* grpc.RpcError as failed:
            first = failed.exceptions[0]
            assert isinstance(first, grpc.RpcError)
            raise from_rpc_error(first) from first
        return [task.result() for task in tasks]

    async def embed(self, embedder: str, texts: Sequence[str]) -> tuple[str, list[bytes]]:
        """See Models. Raises Internal BAD_VECTORS when there are not as many as texts."""
        version, vectors = "", list[bytes]()
        for at in range(0, len(texts), _BATCH):
            request = pb.EmbedRequest(
                model=embedder, texts=[text[:_CHARS] for text in texts[at : at + _BATCH]]
            )
            try:
                answer = await self._stub.Embed(request, timeout=_CALL_S)
            except grpc.RpcError as exc:
                raise from_rpc_error(exc) from exc
            vectors += _vectors(answer)
            version = version or answer.model
        if len(vectors) != len(texts):
            raise Internal("BAD_VECTORS", f"{embedder} gave {len(vectors)} for {len(texts)} texts.")
        return version, vectors


def _vectors(answer: pb.EmbedResponse) -> list[bytes]:
    return [array.array("f", v.values).tobytes() for v in answer.embeddings]


def _alone() -> FailedPrecondition:
    return FailedPrecondition("NO_PEER", "No execution server is in reach.")
