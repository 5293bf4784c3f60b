"""LoRA adapters asked for as models are: `model` is the adapter's own name.

The operating system knows an adapter's model by its tag `base`, or by what it was made from.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.lib.errors import FailedPrecondition
from llmos.servers.gateway.answers import find
from llmos.servers.gateway.backend import Backend, Call

_KNOWN_S = 30.0  # how long a name that meant an adapter is taken to do so


class NamingAdapters:
    """A Backend in front of another. What is no adapter costs nothing."""

    def __init__(self, backend: Backend) -> None:
        """Call `backend`."""
        self._backend = backend
        self._bases: dict[str, tuple[str, float]] = {}  # model and until when, by adapter

    async def generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Yield the pieces; those of an adapter say its name as their model. See Backend."""
        name = request.model
        base, until = self._bases.get(name, ("", 0.0))
        if until > time.monotonic():
            async with aclosing(self._adapted(request, base, call)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        self._bases.pop(name, None)
        try:
            async with aclosing(self._backend.generate(request, call)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        except FailedPrecondition as exc:  # told before the first piece
            if exc.reason != "IS_ADAPTER" or not (base := await self._base(name, call)):
                raise
        self._bases[name] = base, time.monotonic() + _KNOWN_S
        async with aclosing(self._adapted(request, base, call)) as pieces:
            async for piece in pieces:
                yield piece

    async def _adapted(
        self, request: pb.GenerateRequest, base: str, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        changed = pb.GenerateRequest()
        changed.CopyFrom(request)
        changed.model, changed.adapter = base, request.model
        async with aclosing(self._backend.generate(changed, call)) as pieces:
            async for piece in pieces:
                if piece.model:
                    piece.model = request.model
                yield piece

    async def _base(self, name: str, call: Call) -> str:
        found = find(await self._backend.list_models(call), name)
        return found.base if found is not None else ""

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """See Backend."""
        return await self._backend.embed(request, call)

    async def list_models(self, call: Call) -> Sequence[pb.Model]:
        """See Backend."""
        return await self._backend.list_models(call)

    async def missing(self) -> list[str]:
        """See Backend."""
        return await self._backend.missing()
