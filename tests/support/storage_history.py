"""Work on a storage server until it dies, what it acknowledged, and whether that is still so."""

from __future__ import annotations

import asyncio
import hashlib
import random
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
from remote_registry import RemoteAliases
from remote_storage import RemoteStorage
from remote_upkeep import RemoteMaintenance, RemoteUploads
from safetensors.numpy import save_file
from storage_checks import content

from llmos.lib.errors import LLMOSError
from llmos.servers.storage.blobs.uploads_base import Part
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.model import Draft, File, Registered
from llmos.servers.storage.registry.local import LocalAliases
from llmos.servers.storage.upkeep.base import Finding
from llmos.servers.storage.upkeep.local import LocalMaintenance

PIECE = 64 << 10
MADE = 12  # versions kept of what is registered over and over: a long campaign stays quick


def fine_tune(path: Path, seed: int, step: int) -> Path:
    """Write a model of 24 layers of 32 KiB, of which two are of this step alone."""
    random_ = np.random.default_rng(seed)
    layers = {f"l{i:02}": random_.standard_normal((64, 128), dtype=np.float32) for i in range(24)}
    own = np.random.default_rng(1000 + step)
    for i in own.integers(0, 24, 2):
        layers[f"l{i:02}"] = own.standard_normal((64, 128), dtype=np.float32)
    save_file(layers, path)
    return path


class History:
    """What was acknowledged. What was under way at a kill may be either way, once."""

    def __init__(self) -> None:
        self.versions: dict[str, dict[str, str]] = {}  # not deleted: {ref: {file: digest}}
        self.unsure: set[str] = set()  # versions whose deletion was under way
        self.deleted: set[str] = set()
        self.blobs: set[str] = set()  # loose ones, acknowledged after the last collection began
        self.uploads: dict[str, tuple[bytes, int]] = {}  # id: (data, acknowledged bytes)
        self.alias = 0  # version that was acknowledged ...
        self.next_alias = 0  # ... and the one under way
        self.steps = 0
        self.collecting = False
        self.collections = 0  # begun so far

    def keep(self, digest: str, since: int) -> None:
        """Remember a loose blob, unless a collection has run since its write began."""
        if not self.collecting and since == self.collections:
            self.blobs.add(digest)

    def gone(self, ref: str) -> None:
        """Note that a deletion was acknowledged."""
        self.unsure.discard(ref)
        self.deleted.add(ref)
        del self.versions[ref]

    def settle(self, alive: dict[str, dict[str, str]]) -> None:
        """Compare with all that is registered; what was under way is from now on as it is."""
        assert not alive.keys() & self.deleted, "a deleted version is back"
        for ref, files in self.versions.items():
            if ref in alive or ref not in self.unsure:
                assert alive.get(ref) == files, f"{ref} is {alive.get(ref)}, was {files}"
        new = alive.keys() - self.versions.keys()
        assert len(new) <= 2, f"one import and one registration were under way: {new}"
        self.deleted |= self.unsure - alive.keys()
        self.unsure.clear()
        self.versions = alive


async def work(channel: grpc.aio.Channel, folder: Path, history: History, round: int) -> None:
    """Change things until the server dies; raises its LLMOSError then."""
    storage, uploads = RemoteStorage(channel), RemoteUploads(channel)
    aliases, upkeep = RemoteAliases(channel), RemoteMaintenance(channel)
    dice = random.Random(round)

    async def importing() -> None:
        for step in range(10_000):
            path = fine_tune(folder / "tuned.safetensors", dice.randrange(3), step + round * 1000)
            async for progress in storage.import_model(str(path), f"m{dice.randrange(3)}"):
                if isinstance(progress, Registered):
                    files = {f.name: f.sha256 for f in progress.version.files}
                    history.versions[progress.version.ref] = files
                    history.steps += 1

    async def deleting() -> None:
        while True:
            made = _made(history)
            alive = sorted(history.versions.keys() - set(made))
            if len(made) > MADE:
                await delete(dice.choice(made[:-4]), False)
            elif len(alive) > 3:
                await delete(dice.choice(alive), True)
            await asyncio.sleep(0.01)

    async def delete(ref: str, force: bool) -> None:
        history.unsure.add(ref)
        try:
            await storage.delete_version(ref, force)
        except LLMOSError as exc:
            if force or exc.reason != "IN_USE":  # by the alias, which moves beside this
                raise
            history.unsure.discard(ref)
            return
        history.gone(ref)
        history.steps += 1

    async def uploading() -> None:
        while True:
            if not history.uploads:
                data = dice.randbytes(dice.randrange(1, 40) * 30_000)
                begun = await uploads.create(hashlib.sha256(data).hexdigest(), len(data))
                assert begun is not None
                history.uploads[begun.id] = (data, 0)
            ((id, (data, offset)),) = history.uploads.items()
            if offset == 0 and dice.random() < 0.2:
                del history.uploads[id]
                await uploads.abort(id)
                continue
            end = min(len(data), offset + dice.randrange(1, 8) * PIECE)
            # An acknowledgement that got lost may have made more durable: what counts is theirs.
            offset = (await uploads.get(id)).offset
            done = await uploads.append(id, _parts(data, offset, max(end, offset)))
            history.uploads[id] = (data, done)
            if done == len(data):
                del history.uploads[id]
                began = history.collections if not history.collecting else -1
                digest, _ = await uploads.commit(id)
                history.keep(digest, began)
            history.steps += 1

    async def registering() -> None:
        for step in range(10_000):
            path = fine_tune(folder / "made.safetensors", 0, step + round * 1000 + 500)
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()

            async def chunks(data: bytes = data) -> AsyncIterator[bytes]:
                for at in range(0, len(data), PIECE):
                    yield data[at : at + PIECE]

            began = history.collections if not history.collecting else -1
            await storage.write_blob(digest, chunks())
            history.keep(digest, began)
            try:
                draft = Draft("made", (File("model.safetensors", digest, 0),))
                made = await storage.create_version(draft)
            except LLMOSError as exc:
                if exc.reason != "NO_SUCH_BLOB":  # the collection beside it took the blob
                    raise
                continue
            history.versions[made.version.ref] = {f.name: f.sha256 for f in made.version.files}
            history.steps += 1

    async def moving() -> None:
        while True:
            if kept := _made(history):
                number = int(dice.choice(kept).partition("@")[2])
                history.next_alias = number
                try:
                    await aliases.set_alias("made", "prod", number)
                    history.alias = number
                except LLMOSError as exc:
                    if exc.reason not in ("NO_SUCH_VERSION", "NO_SUCH_MODEL"):
                        raise
                    history.next_alias = history.alias
                history.steps += 1
            await asyncio.sleep(0.005)

    async def collecting() -> None:
        while True:
            await asyncio.sleep(dice.uniform(0.05, 0.4))
            history.collecting = True  # a grace of 0 may take any
            history.collections += 1
            history.blobs.clear()
            await upkeep.collect(0)
            history.collecting = False
            history.steps += 1

    jobs = [importing, deleting, uploading, registering, moving, collecting]
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(job())


def _made(history: History) -> list[str]:
    """Return the versions that the alias moves between, oldest first."""
    refs = [ref for ref in history.versions if ref.startswith("made@")]
    return sorted(refs, key=lambda ref: int(ref.partition("@")[2]))


async def _registered(store: LocalStorage) -> dict[str, dict[str, str]]:
    found, token = dict[str, dict[str, str]](), ""
    while True:
        page = await store.list_versions("", 1000, token)
        found |= {v.ref: {f.name: f.sha256 for f in v.files} for v in page.versions}
        if not (token := page.next_token):
            return found


async def _parts(data: bytes, start: int, end: int) -> AsyncIterator[Part]:
    for offset in range(start, end, PIECE):
        piece = data[offset : min(end, offset + PIECE)]
        yield Part(offset, piece, zlib.crc32(piece))


async def check(state_dir: Path, history: History) -> None:
    """Open the store and compare it with what was acknowledged, and with itself."""
    folder = state_dir / "storage"
    store = LocalStorage(folder, blob_grace_s=1e9)
    try:
        upkeep = LocalMaintenance(folder, store.blobs, store.uploads)
        steps = upkeep.fsck(False, False)
        wrong = [step async for step in steps if isinstance(step, Finding)]
        assert not wrong, wrong
        history.settle(await _registered(store))
        for ref, files in history.versions.items():
            version = await store.get_version(ref)
            assert {f.name: f.sha256 for f in version.files} == files
            for file in version.files:
                found = hashlib.sha256(await content(store, file.sha256)).hexdigest()
                assert found == file.sha256
        assert -1 not in await store.stat_blobs(sorted(history.blobs))
        for id, (data, acknowledged) in list(history.uploads.items()):
            try:
                upload = await store.uploads.get(id)
            except LLMOSError as exc:  # its commit or its creation was under way
                assert exc.reason == "NO_SUCH_UPLOAD"
                digest = hashlib.sha256(data).hexdigest()
                assert acknowledged == 0 or await store.stat_blobs([digest]) == [len(data)]
                del history.uploads[id]
                continue
            assert upload.offset >= acknowledged
        if history.alias:
            page = await LocalAliases(store.database).list_aliases("made", 10, "")
            assert [a.version for a in page.aliases] in ([history.alias], [history.next_alias])
            history.alias = history.next_alias = page.aliases[0].version
        for leftovers in (folder / "tmp", folder / "incoming"):
            assert not leftovers.is_dir() or list(leftovers.iterdir()) == []
        history.collecting = False
    finally:
        store.close()


def dead(error: BaseException) -> bool:
    """Return whether it says that the server went away, or that a call was given up for that."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(dead, error.exceptions))
    return isinstance(error, LLMOSError) and error.code in (1, 14)
