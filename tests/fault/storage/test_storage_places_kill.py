"""kill -9 in the middle of a download: the next try goes on from there, nothing else is left."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
import storage_process
from local_hub import local_hub
from model_files import tiny_safetensors

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib.config import socket_address


def bring(state_dir: Path) -> pb.ImportModelResponse:
    with grpc.insecure_channel(socket_address(state_dir, "storage")) as channel:
        stub = registry_pb2_grpc.RegistryStub(channel)
        request = pb.ImportModelRequest(source="hf:acme/tiny")
        return list(stub.ImportModel(request, timeout=100))[-1]


def test_a_download_goes_on_after_kill_9(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = tiny_safetensors(tmp_path / "m", rows=40_000).read_bytes()
    with TemporaryDirectory(prefix="llmos-") as folder, local_hub() as hub:
        state_dir = Path(folder)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        # The optimizer's modules set it when they are imported, also into this process.
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
            monkeypatch.setenv(name, "100")  # the hub stalls until the server is dead
        hub.add("acme/tiny", {"model.safetensors": data})
        hub.stall_after = 2_000_000
        process = storage_process.start(state_dir)
        try:
            with ThreadPoolExecutor(1) as pool:
                call = pool.submit(bring, state_dir)
                deadline = time.monotonic() + 60
                while not any(
                    p.stat().st_size > 1_000_000
                    for p in (state_dir / "storage" / "incoming").rglob("*.part")
                ):
                    assert time.monotonic() < deadline
                    if call.done():
                        pytest.fail(f"the import ended by itself: {call.exception()}")
                    time.sleep(0.05)
                process.kill()
                process.wait()
                with pytest.raises(grpc.RpcError):
                    call.result(60)
        finally:
            process.kill()
            process.wait()
        hub.stall_after, hub.served = -1, 0
        hub.go_on.set()
        with storage_process.storage(state_dir):
            version = bring(state_dir).version
        assert version.name == "tiny" and version.files[0].size == len(data)
        assert any(int(asked[6:].split("-")[0]) > 1_000_000 for asked in hub.ranges)
        assert hub.served < len(data) - 1_000_000
        left = [p for p in (state_dir / "storage" / "incoming").rglob("*") if p.is_file()]
        assert left == []
