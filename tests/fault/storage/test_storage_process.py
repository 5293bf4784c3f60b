"""The real process: two at once, a clean stop in the middle of an import, paths by transport."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from model_files import tiny_gguf
from remote_storage import RemoteStorage
from storage_process import command, start, storage

from llmos.lib.config import socket_address
from llmos.lib.errors import NotFound
from llmos.lib.failpoint import VARIABLE
from llmos.servers.storage.model import Progress, Registered


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="llmos-") as folder:
        yield Path(folder)


async def serves(channel: grpc.aio.Channel) -> bool:
    """Return whether the server takes new calls."""
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_a_second_server_changes_nothing(state_dir: Path) -> None:
    with storage(state_dir) as first:
        second = subprocess.run(command(state_dir), capture_output=True, text=True, timeout=60)
        assert second.returncode == 1
        assert second.stderr.startswith("llmos-storage: Another llmos-storage has")
        assert second.stderr.count("\n") == 1
        assert first.poll() is None


async def test_a_stop_lets_a_running_import_finish(state_dir: Path, tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf")
    points = tmp_path / "points"
    points.mkdir()
    (points / "file.written").write_text("1 wait")
    process = start(state_dir, extra={VARIABLE: str(points)})
    try:
        async with grpc.aio.insecure_channel(socket_address(state_dir, "storage")) as channel:

            async def importing() -> Progress | Registered:
                async for step in RemoteStorage(channel).import_model(str(source), ""):
                    last = step
                return last

            running = asyncio.create_task(importing())
            async with asyncio.timeout(60):
                while not (points / "file.written.taken").exists():
                    await asyncio.sleep(0.02)
            process.terminate()
            async with asyncio.timeout(60):
                while await serves(channel):
                    await asyncio.sleep(0.02)
            (points / "file.written.taken").unlink()
            assert isinstance(await running, Registered)
        assert await asyncio.to_thread(process.wait, 30) == 0
    finally:
        process.kill()
        process.wait()
    assert list((state_dir / "storage" / "tmp").iterdir()) == []


async def test_paths_only_for_callers_on_this_host(state_dir: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    source = tiny_gguf(tmp_path / "a.gguf")
    process = subprocess.Popen(  # noqa: ASYNC220 - takes a millisecond
        command(state_dir, "--listen", f"127.0.0.1:{port}"), stderr=subprocess.DEVNULL
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 30)
            remote = RemoteStorage(channel)
            async for step in remote.import_model(str(source), "m"):
                last = step
            assert not isinstance(last, Progress)
            (file,) = last.version.files
            assert file.path is None
            data = b"".join([p async for p in remote.read_blob(file.sha256, 0, 0)])
            assert data == source.read_bytes()
    finally:
        process.terminate()
        assert process.wait(30) == 0
    with storage(state_dir):
        async with grpc.aio.insecure_channel(socket_address(state_dir, "storage")) as channel:
            remote = RemoteStorage(channel)
            found = await remote.get_version("m")  # survived the restart
            assert found.files[0].path is not None and found.files[0].path.is_file()
            with pytest.raises(NotFound):
                await remote.get_version("n")
