"""kill -9 of storage in the middle of transactions, and holders of locks that were paused."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
from memory_process import line_of
from model_files import tiny_gguf
from remote_state import RemoteDocuments, RemoteLeases, RemoteLocks, own
from storage_process import start, storage

from llmos.api.storage.v1 import audit_pb2, audit_pb2_grpc, registry_pb2_grpc
from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.lib.config import socket_address
from llmos.lib.errors import LLMOSError, NotFound
from llmos.servers.storage.state.model import (
    Changes,
    Delete,
    Keys,
    Put,
    Transaction,
)

ROUNDS = int(os.environ.get("LLMOS_STATE_KILLS", "2"))
PAIR = ("pair/a", "pair/b", "other/c")
ALL = Keys("", prefix=True)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="llmos-") as folder:
        yield Path(folder)


@asynccontextmanager
async def channel_to(state_dir: Path) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(socket_address(state_dir, "storage")) as channel:
        yield channel


async def work(documents: RemoteDocuments, round: int, done: dict[str, int]) -> None:
    """Change three documents at once, again and again, until the server dies."""
    for number in range(10_000):
        value = f"{round} {number}".encode()
        outcome = await documents.run(
            Transaction(
                [Put(key, value) for key in PAIR] + [Delete(Keys("temp/", prefix=True))]
                if number % 3
                else [Put(key, value) for key in (*PAIR, "temp/1")],
                request_id=f"{round}-{number}",
            )
        )
        done[f"{round}-{number}"] = outcome.revision


class Watcher:
    """Follows all changes over restarts, as a client that keeps its last revision."""

    def __init__(self) -> None:
        self.next = 0
        self.seen: list[Changes] = []

    async def follow(self, documents: RemoteDocuments) -> None:
        with suppress(LLMOSError):  # the server dies
            async for step in documents.watch(ALL, self.next):
                if step.documents:
                    self.seen.append(step)
                self.next = step.revision + 1


def check_history(watcher: Watcher, done: dict[str, int]) -> None:
    """What was watched is whole transactions, each once, in order, with all that was answered."""
    by_revision: dict[int, dict[str, bytes]] = {}
    order: list[int] = []
    for step in watcher.seen:
        for document in step.documents:
            if document.mod_revision not in by_revision:
                order.append(document.mod_revision)
            seen = by_revision.setdefault(document.mod_revision, {})
            assert document.key not in seen, "a change was told twice"
            seen[document.key] = document.value
    assert order == sorted(order)
    versions = {}
    for revision in order:
        changes = by_revision[revision]
        assert set(PAIR) <= changes.keys(), "half a transaction was seen"
        assert len({changes[key] for key in PAIR}) == 1
        versions[revision] = changes[PAIR[0]].decode()
    for id, revision in done.items():
        assert versions[revision] == id.replace("-", " "), "an acknowledged change is not there"


async def test_kill_in_the_middle_of_transactions(state_dir: Path) -> None:
    watcher, done, dice = Watcher(), dict[str, int](), random.Random(5)
    watcher.next = 2  # from the first change
    for round in range(ROUNDS + 1):
        process = start(state_dir)
        try:
            async with channel_to(state_dir) as channel:
                documents = RemoteDocuments(channel)
                page = await documents.list("", page_size=1000)
                values = {d.value for d in page.documents if d.key in PAIR}
                assert len(values) <= 1, "half a transaction was kept"
                await own(audit_pb2_grpc.AuditStub(channel).VerifyLog(audit_pb2.VerifyLogRequest()))
                following = asyncio.create_task(watcher.follow(documents))
                if round < ROUNDS:
                    busy = asyncio.create_task(work(documents, round, done))
                    await asyncio.sleep(dice.uniform(0.05, 0.4))
                    os.kill(process.pid, signal.SIGKILL)
                    with pytest.raises(LLMOSError):
                        await busy
                    await following
                else:
                    async with asyncio.timeout(30):
                        while watcher.next <= page.revision:
                            await asyncio.sleep(0.02)
                    following.cancel()
                    # a retry of what was answered is answered again, and changes nothing
                    if done:
                        id, revision = list(done.items())[-1]
                        last = id.replace("-", " ").encode()
                        again = await documents.get(PAIR[0], revision)
                        assert again[0].value == last
        finally:
            process.kill()
            process.wait()
    assert len(done) > ROUNDS
    check_history(watcher, done)


async def test_an_unanswered_transaction_can_be_repeated(state_dir: Path) -> None:
    """Kill while transactions are under way, repeat each by its request id: it ran just once."""
    for round in range(2):
        with storage(state_dir) as process:
            async with channel_to(state_dir) as channel:
                documents = RemoteDocuments(channel)
                adding = [
                    asyncio.create_task(
                        documents.put(Put(f"n/{round}/{i}", b"x"), None, f"{round}/{i}")
                    )
                    for i in range(20)
                ]
                await asyncio.wait(adding, return_when=asyncio.FIRST_COMPLETED)
                os.kill(process.pid, signal.SIGKILL)
                await asyncio.gather(*adding, return_exceptions=True)
        with storage(state_dir):
            async with channel_to(state_dir) as channel:
                documents = RemoteDocuments(channel)
                for i in range(20):
                    made = await documents.put(Put(f"n/{round}/{i}", b"x"), None, f"{round}/{i}")
                    assert made.version == 1


async def test_leases_and_locks_survive_a_kill(state_dir: Path) -> None:
    with storage(state_dir) as process:
        async with channel_to(state_dir) as channel:
            leases, locks = RemoteLeases(channel), RemoteLocks(channel)
            await leases.grant(3_000, "holder")
            await leases.grant(60_000, "waiter")
            token = await locks.acquire("l", "holder")
            waiting = asyncio.create_task(locks.acquire("l", "waiter", wait_ms=60_000))
            async with asyncio.timeout(20):
                while not (await locks.lock("l")).waiting:
                    await asyncio.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            with pytest.raises(LLMOSError):
                await waiting
    await asyncio.sleep(3.1)  # storage is away for longer than the lease
    with storage(state_dir):
        async with channel_to(state_dir) as channel:
            leases, locks = RemoteLeases(channel), RemoteLocks(channel)
            assert (await leases.renew("holder")).ttl_ms == 3_000  # nobody lost it
            lock = await locks.lock("l")
            assert lock.holder is not None and lock.holder.token == token
            place = lock.waiting[0].token
            again = asyncio.create_task(locks.acquire("l", "waiter", wait_ms=60_000))
            await locks.release("l", token)
            async with asyncio.timeout(20):
                assert await again == place  # the same place in the queue


HOLDER = """
import sys, time, grpc
from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc
from llmos.api.storage.v1 import locks_pb2, locks_pb2_grpc, state_pb2 as pb, state_pb2_grpc
channel = grpc.insecure_channel(sys.argv[1])
leases, locks = locks_pb2_grpc.LeasesStub(channel), locks_pb2_grpc.LocksStub(channel)
documents = state_pb2_grpc.DocumentsStub(channel)
registry = registry_pb2_grpc.RegistryStub(channel)
leases.GrantLease(locks_pb2.GrantLeaseRequest(id="paused", ttl_ms=1000))
asked = locks_pb2.AcquireLockRequest(name="job", lease="paused", wait_ms=9000)
token = locks.AcquireLock(asked).token
fence = [("llmos-fence", f"job:{token}")]
documents.PutDocument(pb.PutDocumentRequest(key="out", value=b"first"), metadata=fence)
print(token, flush=True)
sys.stdin.readline()  # paused meanwhile
for call, request in (
    (documents.PutDocument, pb.PutDocumentRequest(key="out", value=b"late")),
    (documents.DeleteDocuments, pb.DeleteDocumentsRequest(key="out")),
    (registry.DeleteVersion, registry_pb2.DeleteVersionRequest(ref="m@1")),
):
    try:
        call(request, metadata=fence)
        print("CHANGED", flush=True)
    except grpc.RpcError as exc:
        print(exc.code().name, exc.details(), flush=True)
"""


def start_holder(address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_a_paused_holder_changes_nothing(state_dir: Path) -> None:
    """The holder is stopped past its lease's end; another takes the lock; then it goes on."""
    with storage(state_dir):
        address = socket_address(state_dir, "storage")
        holder = start_holder(address)
        assert holder.stdin is not None and holder.stdout is not None
        try:
            old = int(await line_of(holder.stdout))
            os.kill(holder.pid, signal.SIGSTOP)
            async with channel_to(state_dir) as channel:
                leases, locks = RemoteLeases(channel), RemoteLocks(channel)
                documents = RemoteDocuments(channel)
                await leases.grant(60_000, "next")
                new = await locks.acquire("job", "next", wait_ms=30_000)
                assert new > old
                with pytest.raises(NotFound):
                    await leases.renew("paused")
                fenced = RemoteDocuments(channel, [("llmos-fence", f"job:{new}")])
                await fenced.put(Put("out", b"second"))
                os.kill(holder.pid, signal.SIGCONT)
                said, _ = await asyncio.to_thread(holder.communicate, "\n", 30)
                assert said.count("FAILED_PRECONDITION") == 3, said
                assert "CHANGED" not in said
                assert (await documents.get("out"))[0].value == b"second"
        finally:
            holder.kill()
            holder.wait()
            holder.stdin.close()
            holder.stdout.close()


async def test_a_paused_server_takes_no_lock_away(state_dir: Path) -> None:
    with storage(state_dir) as process:
        async with channel_to(state_dir) as channel:
            leases, locks = RemoteLeases(channel), RemoteLocks(channel)
            await leases.grant(2_000, "holder")
            token = await locks.acquire("l", "holder")
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.sleep(3.0)
            os.kill(process.pid, signal.SIGCONT)
            await leases.renew("holder")
            lock = await locks.lock("l")
            assert lock.holder is not None and lock.holder.token == token


async def test_every_kind_of_change_is_fenced(state_dir: Path, tmp_path: Path) -> None:
    """Services that others wrote: an import, an upload, a version, by a caller without the lock."""
    source, data = tiny_gguf(tmp_path / "m.gguf"), b"bytes"
    digest = hashlib.sha256(data).hexdigest()
    with storage(state_dir):
        async with channel_to(state_dir) as channel:
            registry = registry_pb2_grpc.RegistryStub(channel)
            blobs = registry_pb2_grpc.BlobsStub(channel)
            stale = (("llmos-fence", "lock:1"),)
            version = pb.ModelVersion(name="m", files=[pb.File(name="f", sha256=digest)])
            importing = registry.ImportModel(
                pb.ImportModelRequest(source=str(source), name="m"), metadata=stale
            )
            pieces = [pb.WriteBlobRequest(sha256=digest), pb.WriteBlobRequest(data=data)]
            for call in (
                own(importing.read()),
                own(blobs.WriteBlob(iter(pieces), metadata=stale)),
                own(
                    registry.CreateVersion(pb.CreateVersionRequest(version=version), metadata=stale)
                ),
            ):
                with pytest.raises(LLMOSError) as caught:
                    while await call:
                        call = own(importing.read())  # its progress
                assert caught.value.reason in ("STALE_FENCE", "NO_SUCH_BLOB"), caught.value
            assert not (await registry.ListVersions(pb.ListVersionsRequest())).versions
            assert (await blobs.StatBlobs(pb.StatBlobsRequest(sha256=[digest]))).sizes == [-1]
