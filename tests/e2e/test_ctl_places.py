"""llmos-ctl model convert, sign, verify, export, push, pull, against a storage server alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import ctl_forked
import grpc
import pytest
import storage_process
from local_registry import oci_registry
from model_files import tiny_encoder
from torch_files import tiny_checkpoint

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib.config import socket_address


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="llmos-") as folder:
        yield Path(folder)


def openssl(*arguments: str) -> None:
    try:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")


def ctl(state_dir: Path, *arguments: str, code: int = 0) -> str:
    address = socket_address(state_dir, "storage")
    done = ctl_forked.run("--address", address, "model", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + (done.stderr if code else "")


def test_from_a_pickle_to_a_signed_artifact_and_back(state_dir: Path, tmp_path: Path) -> None:
    key, public = str(tmp_path / "key.pem"), str(tmp_path / "key.pub")
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
    openssl("ec", "-in", key, "-pubout", "-out", public)
    net = tiny_checkpoint(tmp_path / "net.pt")
    (tmp_path / "registry").mkdir()
    with (
        storage_process.storage(state_dir, "--require-signature", public),
        oci_registry(tmp_path / "registry") as host,
    ):
        assert "model convert" in ctl(state_dir, "import", str(net), code=2)
        assert "Imported net@1: safetensors" in ctl(state_dir, "convert", str(net))
        assert "sign net@1" in ctl(state_dir, "verify", "net", "--key", public, code=7)
        assert load_fails(state_dir, "net") == "FAILED_PRECONDITION"
        assert "Signed net@1" in ctl(state_dir, "sign", "net", "--key", key)
        assert "net@1 is what was signed" in ctl(state_dir, "verify", "net", "--key", public)
        assert load_fails(state_dir, "net") == ""
        listed = json.loads(ctl(state_dir, "signatures", "net", "-o", "json"))
        assert len(listed) == 1
        assert "Exported net" in ctl(state_dir, "export", "net", str(tmp_path / "out"))
        assert (tmp_path / "out" / "model.sig").is_file()
        reference = f"oci:{host}/acme/net:v1"
        assert f"oci:{host}/acme/net@sha256:" in ctl(state_dir, "push", "net", reference)
        assert "Pulled copy@1" in ctl(state_dir, "pull", reference, "--name", "copy")
        assert "no registry" in ctl(state_dir, "push", "net", str(tmp_path), code=2)
        assert "no place to pull" in ctl(state_dir, "pull", "./here", code=2)
        tampered = next((state_dir / "storage" / "blobs").glob(f"*/{sha256(state_dir, 'net')}"))
        tampered.chmod(0o644)
        tampered.write_bytes(tampered.read_bytes()[:-1] + b"\0")
        assert "damaged" in ctl(state_dir, "verify", "net", "--key", public, code=11)
        assert load_fails(state_dir, "net") == "DATA_LOSS"


def test_a_server_with_a_bad_key_says_so(state_dir: Path, tmp_path: Path) -> None:
    tiny_encoder(tmp_path / "x")
    for path in (tmp_path / "none", tmp_path / "x" / "config.json"):
        command = storage_process.command(state_dir, "--require-signature", str(path))
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert str(path) in done.stderr or "Not a key" in done.stderr


def load_fails(state_dir: Path, ref: str) -> str:
    """Return the status of a GetVersion by somebody who is about to load it; "" = it is fine."""
    with grpc.insecure_channel(socket_address(state_dir, "storage")) as channel:
        stub = registry_pb2_grpc.RegistryStub(channel)
        try:
            stub.GetVersion(pb.GetVersionRequest(ref=ref, load=True), timeout=30)
        except grpc.RpcError as exc:
            return str(exc.code().name)
    return ""


def sha256(state_dir: Path, ref: str) -> str:
    with grpc.insecure_channel(socket_address(state_dir, "storage")) as channel:
        stub = registry_pb2_grpc.RegistryStub(channel)
        return stub.GetVersion(pb.GetVersionRequest(ref=ref), timeout=30).version.files[0].sha256
