"""kill -9 in the middle of imports, uploads and deletes: nothing lost, nothing half-done."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
from model_files import tiny_safetensors
from remote_storage import RemoteStorage
from storage_process import start

from llmos.lib.config import socket_address
from llmos.lib.errors import LLMOSError
from llmos.servers.storage.model import Registered

ROUNDS = int(os.environ.get("LLMOS_STORAGE_KILLS", "3"))


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="llmos-") as folder:
        yield Path(folder)


class History:
    """What the server acknowledged: {ref: files' digests}, uploads, and refs given up."""

    def __init__(self) -> None:
        self.versions: dict[str, set[str]] = {}
        self.uploads: set[str] = set()
        self.deleted: set[str] = set()
        self.unsure: set[str] = set()  # a delete was under way


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start_at in range(0, len(data), 64 << 10):
        yield data[start_at : start_at + (64 << 10)]


async def work(storage: RemoteStorage, sources: list[Path], round: int, history: History) -> None:
    """Import, upload and delete until the server dies."""

    async def importing(source: Path, number: int) -> None:
        async for step in storage.import_model(str(source), f"r{round}-{number}"):
            if isinstance(step, Registered):
                files = {f.sha256 for f in step.version.files}
                history.versions[step.version.ref] = files

    async def uploading(number: int) -> None:
        data = random.Random(f"{round} {number}").randbytes(1 << 20)
        digest = hashlib.sha256(data).hexdigest()
        await storage.write_blob(digest, chunks(data))
        history.uploads.add(digest)

    async def deleting() -> None:
        if alive := sorted(history.versions.keys() - history.deleted - history.unsure):
            history.unsure.add(alive[0])
            await storage.delete_version(alive[0], False)
            history.deleted.add(alive[0])

    for number in range(1000):
        source = sources[number % len(sources)]
        steps = [importing(source, number), uploading(number)]
        if number % 3 == 2:
            steps.append(deleting())
        await asyncio.gather(*steps)


async def check(storage: RemoteStorage, state_dir: Path, history: History) -> None:
    """Everything acknowledged is there, every file is what its name says, and nothing else is."""
    folder = state_dir / "storage"
    assert list((folder / "tmp").iterdir()) == []
    for ref, digests in history.versions.items():
        if ref in history.deleted:
            with pytest.raises(LLMOSError):
                await storage.get_version(ref)
        elif ref not in history.unsure:
            version = await storage.get_version(ref)
            assert {f.sha256 for f in version.files} == digests
    uploads = sorted(history.uploads)
    assert -1 not in await storage.stat_blobs(uploads)
    on_disk = {file.name: file for file in (folder / "blobs").glob("*/*")}
    with contextlib.closing(sqlite3.connect(folder / "registry.db")) as sql:
        assert sql.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = dict(sql.execute("SELECT sha256, size FROM blobs").fetchall())
    assert rows.keys() == on_disk.keys()
    for digest, file in on_disk.items():
        assert file.stat().st_mode & 0o222 == 0
        with file.open("rb") as stream:
            assert hashlib.file_digest(stream, "sha256").hexdigest() == digest
    seen, token = 0, ""
    while True:
        page = await storage.list_versions("", 100, token)
        for version in page.versions:
            assert all(on_disk[f.sha256].stat().st_size == f.size for f in version.files)
        seen, token = seen + len(page.versions), page.next_token
        if not token:
            break
    least = len(history.versions.keys() - history.deleted - history.unsure)
    assert seen >= least


async def test_kill_in_the_middle_loses_nothing(state_dir: Path, tmp_path: Path) -> None:
    sources = [
        tiny_safetensors(tmp_path / f"m{i}.safetensors", seed=i, rows=rows)
        for i, rows in enumerate((10_000, 10, 60_000))
    ]
    history, dice = History(), random.Random(3)
    for round in range(ROUNDS):
        process = start(state_dir)
        try:
            address = socket_address(state_dir, "storage")
            async with grpc.aio.insecure_channel(address) as channel:
                storage = RemoteStorage(channel)
                await check(storage, state_dir, history)
                for i, source in enumerate(sources):  # new bytes in each round
                    tiny_safetensors(source, seed=round * 10 + i, rows=(10_000, 10, 60_000)[i])
                busy = asyncio.create_task(work(storage, sources, round, history))
                before = len(history.versions)
                while len(history.versions) == before and not busy.done():
                    await asyncio.sleep(0.01)
                await asyncio.sleep(dice.uniform(0.02, 0.5))
                os.kill(process.pid, signal.SIGKILL)
                with pytest.raises(LLMOSError):
                    await busy
        finally:
            process.kill()
            process.wait()
    process = start(state_dir)
    try:
        async with grpc.aio.insecure_channel(socket_address(state_dir, "storage")) as channel:
            await check(RemoteStorage(channel), state_dir, history)
    finally:
        process.terminate()
        assert process.wait(20) == 0
    assert history.versions, "the server was killed before it did anything"
    shutil.rmtree(state_dir / "storage")
