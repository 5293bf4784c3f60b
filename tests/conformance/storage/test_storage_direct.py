"""Fast reads: by the library's reader, and by gRPC's own client, which takes small frames only."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import raw_http2
from safetensors.numpy import save_file
from storage_checks import take

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib.bulk import READ_BLOB, data_of, read_blob
from llmos.lib.errors import (
    DataLoss,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Unavailable,
)
from llmos.lib.h2 import wire
from llmos.lib.rpc import from_rpc_error
from llmos.lib.serve import OPTIONS
from llmos.servers.storage.config import StorageConfig
from llmos.servers.storage.crypt.keys import KeyRing
from llmos.servers.storage.direct import DirectReads, address_of, direct_reads
from llmos.servers.storage.local import LocalStorage

Read = Callable[[str, int, int], Awaitable[bytes]]
SIZE = (9 << 20) + 4567  # more than the windows of either client
DATA = np.random.default_rng(0).bytes(SIZE)
SETTINGS_OF_LARGE_WINDOWS = wire.settings(
    {wire.SET_INITIAL_WINDOW: 1 << 30, wire.SET_MAX_FRAME: 2 << 20}
)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["plain", "encrypted"])
def kept(
    request: pytest.FixtureRequest, state_dir: Path, sqlite_template: Path
) -> Iterator[LocalStorage]:
    (state_dir / "storage").mkdir()
    shutil.copy(sqlite_template, state_dir / "storage")
    keys = KeyRing([os.urandom(32)]) if request.param == "encrypted" else None
    made = LocalStorage(state_dir / "storage", keys=keys, cache_dir=state_dir / "copies")
    yield made
    made.close()


@pytest.fixture(params=["unix", "tcp"])
async def address(
    request: pytest.FixtureRequest, state_dir: Path, kept: LocalStorage
) -> AsyncIterator[str]:
    config = StorageConfig(state_dir=state_dir, kernel="none")
    found = address_of(config)
    if request.param == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as free:
            found = f"127.0.0.1:{free.getsockname()[1]}"
    async with direct_reads(kept.blobs, found):
        yield found


@pytest.fixture(params=["library", "gRPC"])
async def read(request: pytest.FixtureRequest, address: str) -> AsyncIterator[Read]:
    if request.param == "library":

        async def fast(sha256: str, offset: int = 0, length: int = 0) -> bytes:
            out = bytearray()
            total = await read_blob(address, sha256, out.extend, offset=offset, length=length)
            assert total == len(out)
            return bytes(out)

        yield fast
        return
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        stub = registry_pb2_grpc.BlobsStub(channel)

        async def plain(sha256: str, offset: int = 0, length: int = 0) -> bytes:
            request = pb.ReadBlobRequest(sha256=sha256, offset=offset, length=length)
            try:
                return b"".join([piece.data async for piece in stub.ReadBlob(request)])
            except grpc.aio.AioRpcError as exc:
                raise from_rpc_error(exc) from exc

        yield plain


async def upload(store: LocalStorage, data: bytes = DATA) -> str:
    async def pieces() -> AsyncIterator[bytes]:
        yield data

    digest = hashlib.sha256(data).hexdigest()
    await store.write_blob(digest, pieces())
    return digest


async def test_reads_and_ranges(kept: LocalStorage, read: Read) -> None:
    await upload(kept)
    assert await read(DIGEST, 0, 0) == DATA
    for offset, length in ((0, 1), (1, 4096), ((1 << 20) - 1, 2), (SIZE - 3, 0), (5, 3 << 20)):
        end = offset + length if length else SIZE
        assert await read(DIGEST, offset, length) == DATA[offset:end]
    assert await read(DIGEST, SIZE, 0) == b""
    assert await read(await upload(kept, b""), 0, 0) == b""
    several = await asyncio.gather(*(read(DIGEST, i, 2 << 20) for i in range(4)))
    assert several == [DATA[i : i + (2 << 20)] for i in range(4)]


async def test_errors(kept: LocalStorage, read: Read) -> None:
    await upload(kept)
    for digest, offset, length, cls, reason in (
        ("x", 0, 0, InvalidArgument, "BAD_DIGEST"),
        ("x" * 1_000_0, 0, 0, InvalidArgument, "BAD_DIGEST"),
        ("0" * 64, 0, 0, NotFound, "NO_SUCH_BLOB"),
        (DIGEST, SIZE + 1, 0, OutOfRange, "BAD_RANGE"),
        (DIGEST, 1, 2**63, OutOfRange, "BAD_RANGE"),
    ):
        with pytest.raises(cls) as caught:
            await read(digest, offset, length)
        assert caught.value.reason == reason and len(caught.value.message) < 300
    (file,) = [p for p in (kept.blobs.folder).glob("*/*") if p.stat().st_size > 1 << 20]
    file.chmod(0o600)
    os.truncate(file, 1000)
    with pytest.raises(DataLoss) as lost:
        await read(DIGEST, 0, 0)
    assert lost.value.reason == "BLOB_DAMAGED"


@pytest.mark.parametrize("address", ["unix"], indirect=True)
async def test_a_blob_of_pieces(kept: LocalStorage, read: Read, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    tensors = {f"t{i}": random.standard_normal((64, 512), dtype=np.float32) for i in range(40)}
    save_file(tensors, tmp_path / "a.safetensors")
    tensors["t0"] += 1
    save_file(tensors, tmp_path / "b.safetensors")
    await take(kept, tmp_path / "a.safetensors", "a")
    file = (await take(kept, tmp_path / "b.safetensors", "b")).version.files[0]
    assert file.sha256 in kept.blobs.special([file.sha256])
    assert await read(file.sha256, 0, 0) == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("kept", ["plain"], indirect=True)
async def test_a_reader_that_gives_up(kept: LocalStorage, address: str) -> None:
    await upload(kept)
    seen: list[int] = []

    def stop(piece: memoryview) -> None:
        seen.append(len(piece))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await read_blob(address, DIGEST, stop)
    assert len(seen) == 1
    assert await read_blob(address, DIGEST, len) == SIZE


@pytest.mark.parametrize("kept", ["plain"], indirect=True)
async def test_a_client_that_does_not_read(kept: LocalStorage, state_dir: Path) -> None:
    await upload(kept)
    address = address_of(StorageConfig(state_dir=state_dir, kernel="none"))
    reads = DirectReads(kept.blobs, address)
    await reads.start()
    large = SETTINGS_OF_LARGE_WINDOWS + raw_http2.frame(
        raw_http2.WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big")
    )
    request = raw_http2.message(pb.ReadBlobRequest(sha256=DIGEST).SerializeToString())
    silent = raw_http2.connect(address)
    silent.sendall(raw_http2.PREFACE + large + raw_http2.request(1, READ_BLOB))
    silent.sendall(raw_http2.frame(raw_http2.DATA, raw_http2.END_STREAM, 1, request))
    out = bytearray()
    await read_blob(address, DIGEST, out.extend)  # others are served beside it
    assert out == DATA
    silent.close()
    async with asyncio.timeout(10):
        while reads.calls:
            await asyncio.sleep(0.01)
    silent = raw_http2.connect(address)
    silent.sendall(raw_http2.PREFACE + large + raw_http2.request(1, READ_BLOB))
    silent.sendall(raw_http2.frame(raw_http2.DATA, raw_http2.END_STREAM, 1, request))
    async with asyncio.timeout(10):
        while not reads.calls:
            await asyncio.sleep(0.01)
        await reads.close()
    silent.close()
    with pytest.raises(Unavailable) as caught:
        await read_blob(address, DIGEST, out.extend)
    assert caught.value.reason == "CONNECTION_FAILED"


async def test_other_calls_and_bad_requests(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await registry_pb2_grpc.BlobsStub(channel).StatBlobs(pb.StatBlobsRequest())
        error = from_rpc_error(caught.value)
        assert error.reason == "NO_SUCH_METHOD" and READ_BLOB in error.message
        for request, reason in ((b"\xff", "BAD_MESSAGE"), (None, "NO_REQUEST")):
            requests: Any = iter([request] if request else [])
            call: Any = channel.stream_stream(READ_BLOB)(requests)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert from_rpc_error(caught.value).reason == reason


@pytest.mark.parametrize(
    ("listen", "direct", "expected"),
    [
        ("", "", "unix:/s/run/blobs.sock"),
        ("unix:/x.sock", "", "unix:/s/run/blobs.sock"),
        ("127.0.0.1:5", "", ""),
        ("127.0.0.1:5", "0.0.0.0:6", "0.0.0.0:6"),
        ("", "none", ""),
    ],
)
def test_where_it_listens(listen: str, direct: str, expected: str, state_dir: Path) -> None:
    config = StorageConfig(state_dir=state_dir, kernel="none", listen=listen, direct=direct)
    assert address_of(config) == expected.replace("/s/", f"{state_dir}/")


def test_messages_of_other_servers() -> None:
    plain = pb.ReadBlobResponse(data=b"x" * 300)
    assert bytes(data_of(memoryview(plain.SerializeToString()))) == plain.data
    assert bytes(data_of(memoryview(b""))) == b""
    twice = plain.SerializeToString() + pb.ReadBlobResponse(data=b"y").SerializeToString()
    assert bytes(data_of(memoryview(twice))) == b"y"  # the last counts, in protobuf
    for bad in (b"\x0a", b"\x0a\x05ab", b"\x0a" + b"\xff" * 20):
        with pytest.raises(Internal):
            data_of(memoryview(bad))
