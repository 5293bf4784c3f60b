"""What the gateway needs of the operating system, without saying how it is reached."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmos.api.execution.v1 import execution_pb2 as pb


@dataclass(frozen=True)
class Call:
    """How a call is made: its deadline in seconds from now and its metadata."""

    timeout_s: float
    metadata: tuple[tuple[str, str], ...] = ()


class Backend(Protocol):
    """The Execution service as the gateway uses it. Every method raises LLMOSError only.

    Cancelling the awaiting task, or closing a generator, cancels the call.
    """

    def generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Yield the pieces of one generation."""

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """Return one vector per text."""

    async def list_models(self, call: Call) -> Sequence[pb.Model]:
        """Return all model versions, by name and version."""

    async def missing(self) -> list[str]:
        """Return what is missing before requests can be answered, a sentence each."""
