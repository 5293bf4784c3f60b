"""Exports and signatures in process and over gRPC, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from model_files import tiny_encoder
from remote_exchange import RemoteExchange
from storage_checks import take

from llmos.lib.errors import LLMOSError
from llmos.lib.serve import Server
from llmos.servers.storage.config import StorageConfig
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.model import Progress, Version
from llmos.servers.storage.places.exchange import Exchange, LocalExchange
from llmos.servers.storage.places.serving import exchanging
from llmos.servers.storage.signing.base import LocalSignatures, Signatures

T = TypeVar("T")
Both = tuple[LocalStorage, Exchange, Signatures]


@asynccontextmanager
async def exchange_world(way: str, state_dir: Path) -> AsyncIterator[Both]:
    """Open a store and what exports from it; way: `in process` or `gRPC`."""
    with contextlib.closing(LocalStorage(state_dir / "storage")) as store:
        if way == "in process":
            with (
                contextlib.closing(LocalExchange(store)) as exchange,
                contextlib.closing(LocalSignatures(store)) as signatures,
            ):
                yield store, exchange, signatures
            return
        server = Server("storage", StorageConfig(state_dir=state_dir, kernel="none"))
        with exchanging(server, store, 0):
            await server.start()
            async with grpc.aio.insecure_channel(server.address) as channel:
                remote = RemoteExchange(channel)
                yield store, remote, remote
            await server.stop(0)


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
