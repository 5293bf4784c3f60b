"""Exports and signatures in process, over gRPC or through a kernel, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from model_files import tiny_encoder
from remote_exchange import RemoteExchange
from storage_checks import take
from ways import reach

from llmos.lib.errors import LLMOSError
from llmos.lib.serve import Server
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.model import Progress, Version
from llmos.servers.storage.places.exchange import Exchange, LocalExchange
from llmos.servers.storage.places.serving import exchanging
from llmos.servers.storage.signing.base import LocalSignatures, Signatures

T = TypeVar("T")
Both = tuple[LocalStorage, Exchange, Signatures]


@asynccontextmanager
async def exchange_world(way: str, state_dir: Path, store: LocalStorage) -> AsyncIterator[Both]:
    """Open what exports from a store; way: `in process`, `gRPC` or `kernel`."""
    async with AsyncExitStack() as stack:
        if way == "in process":
            exchange = stack.enter_context(contextlib.closing(LocalExchange(store)))
            yield store, exchange, stack.enter_context(contextlib.closing(LocalSignatures(store)))
            return

        def add(server: Server) -> None:
            stack.enter_context(exchanging(server, store, 0))

        channel = await reach(stack, way, state_dir, add)
        remote = RemoteExchange(channel)
        yield store, remote, remote


async def last(steps: AsyncGenerator[Progress | T, None]) -> T:
    seen = [step async for step in steps]
    assert all(isinstance(step, Progress) for step in seen[:-1])
    assert not isinstance(seen[-1], Progress)
    return seen[-1]


async def fails_with(steps: AsyncGenerator[Any, None]) -> LLMOSError:
    with pytest.raises(LLMOSError) as caught:
        await last(steps)
    assert len(caught.value.message) < 700
    return caught.value


async def encoder(store: LocalStorage, folder: Path) -> Version:
    return (await take(store, tiny_encoder(folder), "enc")).version


def damage(store: LocalStorage, sha256: str) -> None:
    path = store.blobs.file(sha256)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
