"""What the storage contract's test files share."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from model_files import tiny_gguf

from llmos.lib.errors import (
    LLMOSError,
)
from llmos.servers.storage.base import Storage
from llmos.servers.storage.model import (
    Progress,
    Registered,
)


async def take(storage: Storage, source: Path | str, name: str = "") -> Registered:
    steps = [step async for step in storage.import_model(str(source), name)]
    assert all(isinstance(step, Progress) for step in steps[:-1])
    assert isinstance(steps[-1], Registered)
    return steps[-1]


async def fails(storage: Storage, source: Path | str, name: str = "") -> LLMOSError:
    with pytest.raises(LLMOSError) as caught:
        await take(storage, source, name)
    return caught.value


async def chunks(data: bytes, size: int = 64 << 10) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def upload(storage: Storage, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    await storage.write_blob(digest, chunks(data))
    return digest


async def content(storage: Storage, digest: str, offset: int = 0, length: int = 0) -> bytes:
    return b"".join([piece async for piece in storage.read_blob(digest, offset, length)])


def leftovers(state_dir: Path) -> list[Path]:
    return [p for p in (state_dir / "storage").glob("[bt][lm]*/**/*") if p.is_file()]


def make_gguf(seed: int) -> bytes:
    with TemporaryDirectory() as folder:
        return tiny_gguf(Path(folder) / "x.gguf", seed=seed).read_bytes()


async def until_clean(state_dir: Path) -> None:
    async with asyncio.timeout(10):
        while leftovers(state_dir):
            await asyncio.sleep(0.01)
