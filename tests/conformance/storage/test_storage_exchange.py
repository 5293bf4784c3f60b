"""Exports, conversions and signatures: in process and over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import torch
from local_registry import oci_registry
from model_files import sparse_safetensors, tiny_encoder, tiny_gguf
from remote_exchange import RemoteExchange
from storage_checks import fails, take
from torch_files import Net, tiny_checkpoint, tiny_script

from llmos.lib import signing
from llmos.lib.errors import DataLoss, FailedPrecondition, LLMOSError
from llmos.lib.serve import Server
from llmos.servers.storage.config import StorageConfig
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.model import Format, Progress, Registered, Version
from llmos.servers.storage.places.exchange import Exchange, Exported, LocalExchange
from llmos.servers.storage.places.serving import exchanging
from llmos.servers.storage.signing.base import LocalSignatures, Signatures, Verified
from llmos.servers.storage.signing.guard import Guard

T = TypeVar("T")


@pytest.fixture
async def both(
    request: pytest.FixtureRequest, state_dir: Path
) -> AsyncIterator[tuple[LocalStorage, Exchange, Signatures]]:
    with contextlib.closing(LocalStorage(state_dir / "storage")) as store:
        if request.param == "in process":
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


Both = tuple[LocalStorage, Exchange, Signatures]
two_ways = pytest.mark.parametrize("both", ["in process", "gRPC"], indirect=True)
over_grpc = pytest.mark.parametrize("both", ["gRPC"], indirect=True)
one_way = pytest.mark.parametrize("both", ["in process"], indirect=True)


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


# Exports.


@two_ways
async def test_export_to_a_folder_and_back(both: Both, tmp_path: Path) -> None:
    store, exchange, _ = both
    version = await encoder(store, tmp_path / "enc")
    target = tmp_path / "out" / "here"
    assert await last(exchange.export_model("enc", str(target))) == Exported(str(target))
    there = {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()}
    assert there == {f.name for f in version.files}
    assert (await take(store, target, "again")).version.digest == version.digest
    assert await last(exchange.export_model("enc@1", str(target))) == Exported(str(target))
    assert [p.name for p in target.parent.iterdir()] == ["here"]
    (target / "config.json").write_text("{}")
    assert (await fails_with(exchange.export_model("enc", str(target)))).reason == (
        "DESTINATION_EXISTS"
    )


@two_ways
async def test_bad_destinations(both: Both, tmp_path: Path) -> None:
    store, exchange, _ = both
    await encoder(store, tmp_path / "enc")
    (tmp_path / "file").write_text("x")
    for destination, reason in (
        ("", "BAD_DESTINATION"),
        ("relative", "BAD_DESTINATION"),
        ("/", "BAD_DESTINATION"),
        ("/tmp/a/../b", "BAD_DESTINATION"),
        ("/x\0y", "BAD_DESTINATION"),
        ("/" + "x" * 1_000_000, "BAD_DESTINATION"),
        ("oci:host", "BAD_DESTINATION"),
        (f"oci:host/x@sha256:{'0' * 64}", "BAD_DESTINATION"),
        ("oci:127.0.0.1:9/x:v1", "DESTINATION_UNREACHABLE"),
        (str(tmp_path / "file"), "DESTINATION_EXISTS"),
        (str(tmp_path / "file" / "below"), "DESTINATION_REFUSED"),
    ):
        assert (await fails_with(exchange.export_model("enc", destination))).reason == reason
    error = await fails_with(exchange.export_model("absent", str(tmp_path / "new")))
    assert error.reason == "NO_SUCH_MODEL" and not (tmp_path / "new").exists()


def damage(store: LocalStorage, sha256: str) -> None:
    path = store.blobs.file(sha256)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


@one_way
async def test_a_damaged_file_is_not_exported(both: Both, tmp_path: Path) -> None:
    store, exchange, _ = both
    version = await encoder(store, tmp_path / "enc")
    damage(store, version.files[0].sha256)
    error = await fails_with(exchange.export_model("enc", str(tmp_path / "out")))
    assert error.reason == "BLOB_DAMAGED"
    (tmp_path / "registry").mkdir()
    with oci_registry(tmp_path / "registry") as host:
        error = await fails_with(exchange.export_model("enc", f"oci:{host}/acme/enc:v1"))
        assert error.reason == "BLOB_DAMAGED"
        assert (await fails(store, f"oci:{host}/acme/enc:v1")).reason == "NO_SUCH_SOURCE"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["enc", "registry"]


@two_ways
async def test_push_and_pull(both: Both, tmp_path: Path) -> None:
    store, exchange, _ = both
    version = await encoder(store, tmp_path / "enc")
    (tmp_path / "registry").mkdir()
    with oci_registry(tmp_path / "registry") as host:
        reference = f"oci:{host}/acme/enc:v1"
        first = await last(exchange.export_model("enc", reference))
        assert first.location.startswith(f"oci:{host}/acme/enc@sha256:")
        assert await last(exchange.export_model("enc@1", reference)) == first
        pulled = (await take(store, reference, "pulled")).version
        assert pulled.digest == version.digest and pulled.files == version.files
        assert pulled.lineage.source == first.location
        script = (await take(store, tiny_script(tmp_path / "net.pt"), "net")).version
        await last(exchange.export_model("net", f"oci:{host}/acme/net:v1"))
        again = (await take(store, f"oci:{host}/acme/net:v1", "net2")).version
        assert again.digest == script.digest


@one_way
async def test_a_cancelled_export_leaves_nothing(both: Both, tmp_path: Path) -> None:
    store, exchange, _ = both
    await take(store, sparse_safetensors(tmp_path / "m.safetensors", 256 << 20), "big")
    steps = exchange.export_model("big", str(tmp_path / "out"))
    async for step in steps:
        if isinstance(step, Progress) and step.done_bytes:
            break
    await steps.aclose()
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


# Conversions.


@over_grpc
async def test_a_checkpoint_becomes_safetensors(both: Both, tmp_path: Path) -> None:
    _, exchange, _ = both
    path = tiny_checkpoint(tmp_path / "Tiny-Net.pt")
    made = await last(exchange.convert_pickle(str(path), ""))
    assert isinstance(made, Registered)
    version = made.version
    assert (version.name, version.description.format) == ("tiny-net", Format.SAFETENSORS)
    assert version.description.parameters == 15
    assert (version.lineage.source, version.lineage.step) == (str(path), "convert-pickle")
    assert version.files[0].path is not None
    from safetensors.torch import load_file

    for name, tensor in Net().state_dict().items():
        assert torch.equal(load_file(version.files[0].path)[name], tensor)


@one_way
async def test_a_training_checkpoint_in_a_folder(both: Both, tmp_path: Path) -> None:
    _, exchange, _ = both
    folder = tiny_encoder(tmp_path / "Enc")
    (folder / "model.safetensors").unlink()
    shared = torch.arange(6.0)
    weights = {"a.weight": shared, "tied": shared, "view": shared[2:4], "t": shared.view(2, 3).T}
    checkpoint = {"state_dict": weights, "epoch": 3, "optimizer": {"m": torch.zeros(99)}}
    torch.save(checkpoint, folder / "pytorch_model.bin")
    version = (await last(exchange.convert_pickle(str(folder), ""))).version
    assert version.name == "enc" and version.description.architecture == "bert"
    assert version.description.parameters == 6 + 6 + 2 + 6
    assert {"tokenizer.json", "1_Pooling/config.json"} < {f.name for f in version.files}


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@one_way
async def test_what_cannot_be_converted(
    both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    store, exchange, _ = both
    mark = tmp_path / "evil"
    torch.save({"w": torch.zeros(2), "x": Evil(mark)}, tmp_path / "evil.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    for name, reason, words in (
        ("evil.pt", "CONVERSION_FAILED", "UnpicklingError"),
        ("empty.pt", "CONVERSION_FAILED", "no tensors"),
        ("none.pt", "NO_SUCH_SOURCE", ""),
    ):
        error = await fails_with(exchange.convert_pickle(str(tmp_path / name), ""))
        assert error.reason == reason and words in error.message, error
    script = tiny_script(tmp_path / "script.pt")
    gguf = tiny_gguf(tmp_path / "m.gguf")
    for path in (script, gguf):
        assert (await fails_with(exchange.convert_pickle(str(path), ""))).reason == "NOT_A_PICKLE"
    assert (await fails_with(exchange.convert_pickle("x.pt", ""))).reason == "NO_SUCH_SOURCE"
    assert not mark.exists()
    assert [p for p in (state_dir / "storage" / "incoming").rglob("*") if p.is_file()] == []
    assert (await store.list_versions("", 0, "")).versions == []


def test_the_worker_is_bounded_and_has_no_network(tmp_path: Path) -> None:
    probe = (
        "import sys; sys.argv = ['x', 'y', str(3 << 30), '100']\n"
        "from llmos.servers.storage.places import convert_worker as w\n"
        "w._confine(3 << 30, 100)\n"
        "try:\n    bytearray(4 << 30)\nexcept MemoryError:\n    print('memory')\n"
        "import socket\n"
        "s = socket.socket(); s.settimeout(2)\n"
        "try:\n    s.connect(('127.0.0.1', 9))\nexcept OSError as e:\n    print(e.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", probe], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.split()
    assert lines[0] == "memory"
    if lines[1] == "111":  # connection refused: the kernel does not let us leave the network
        pytest.skip("user namespaces are not allowed here")
    assert lines[1] == "101"  # network is unreachable


# Signatures.


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "key.pem")


def make_key(path: Path) -> Path:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    made = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(
        made.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    )
    return path


def files(version: Version) -> dict[str, str]:
    return {file.name: file.sha256 for file in version.files}


@two_ways
async def test_sign_verify_and_tamper(both: Both, tmp_path: Path, key: Path) -> None:
    store, exchange, signatures = both
    version = await encoder(store, tmp_path / "enc")
    public = signing.public_half(key)
    error = await fails_with(signatures.verify_version("enc", public))
    assert error.reason == "NOT_SIGNED" and "llmos-ctl model sign" in error.message
    bundle = signing.sign("enc", files(version), key)
    made = await signatures.add_signature("enc", bundle, public)
    assert made.ref == "enc@1" and made.signature.key_sha256 == signing.key_sha256(public)
    held = await last(signatures.verify_version("enc@1", public))
    assert isinstance(held, Verified) and held.signature == made.signature
    assert await signatures.list_signatures("enc") == [made.signature]
    assert (await store.get_version("enc")).signed_by == (made.signature.key_sha256,)

    await last(exchange.export_model("enc", str(tmp_path / "out")))
    outside = _model_signing(tmp_path, public)
    assert outside.returncode == 0, outside.stdout + outside.stderr
    with (tmp_path / "out" / "config.json").open("ab") as file:
        file.write(b" ")
    assert _model_signing(tmp_path, public).returncode != 0

    other = signing.public_half(make_key(tmp_path / "other.pem"))
    assert (await fails_with(signatures.verify_version("enc", other))).reason == "NOT_SIGNED"
    damage(store, version.files[0].sha256)
    assert (await fails_with(signatures.verify_version("enc", public))).reason == "BLOB_DAMAGED"


def _model_signing(folder: Path, public: bytes) -> subprocess.CompletedProcess[str]:
    """Verify by the outside tool."""
    (folder / "key.pub").write_bytes(public)
    command = [sys.executable, "-m", "model_signing", "verify", "key"]
    command += ["--signature", str(folder / "out/model.sig"), "--public_key"]
    command += [str(folder / "key.pub"), str(folder / "out")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@one_way
async def test_bad_signatures(both: Both, tmp_path: Path, key: Path) -> None:
    store, _, signatures = both
    version = await encoder(store, tmp_path / "enc")
    await take(store, tiny_gguf(tmp_path / "m.gguf"), "other")
    public, bundle = signing.public_half(key), signing.sign("enc", files(version), key)
    wrong = signing.public_half(make_key(tmp_path / "wrong.pem"))
    forged = bundle.replace(b'"sig": "', b'"sig": "A').replace(b'"sig":"', b'"sig":"A')
    for ref, data, pem, reason in (
        ("enc", b"", public, "BAD_SIGNATURE"),
        ("enc", b"{}", public, "BAD_SIGNATURE"),
        ("enc", b"[" * 100_000, public, "BAD_SIGNATURE"),
        ("enc", b"\xff" * 5_000_000, public, "BAD_SIGNATURE"),
        ("enc", forged, public, "BAD_SIGNATURE"),
        ("enc", bundle, wrong, "BAD_SIGNATURE"),
        ("enc", bundle, b"", "BAD_KEY"),
        ("enc", bundle, key.read_bytes(), "BAD_KEY"),
        ("other", bundle, public, "SIGNATURE_MISMATCH"),
        ("none", bundle, public, "NO_SUCH_MODEL"),
    ):
        with pytest.raises(LLMOSError) as caught:
            await signatures.add_signature(ref, data, pem)
        assert caught.value.reason == reason and len(caught.value.message) < 500
    assert await signatures.list_signatures("enc") == []
    await signatures.add_signature("enc", bundle, public)
    await signatures.add_signature("enc", bundle, public)
    assert len(await signatures.list_signatures("enc")) == 1


@one_way
async def test_only_signed_and_sound_files_are_loaded(
    both: Both, tmp_path: Path, key: Path
) -> None:
    store, _, signatures = both
    version = await encoder(store, tmp_path / "enc")
    public = signing.public_half(key)
    guard = Guard(store.database, public)
    with pytest.raises(FailedPrecondition, match="llmos-ctl model sign") as unsigned:
        guard.admit(version)
    assert unsigned.value.reason == "NOT_SIGNED"
    bundle = signing.sign("enc", files(version), key)
    await signatures.add_signature("enc", bundle, public)
    guard.admit(version)
    guard.admit(version)
    path = version.files[0].path
    assert path is not None
    before = path.stat()
    damage(store, version.files[0].sha256)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as somebody who hides it
    assert path.stat().st_size == before.st_size
    with pytest.raises(DataLoss) as caught:
        guard.admit(version)
    assert caught.value.reason == "BLOB_DAMAGED"
    with pytest.raises(DataLoss):
        Guard(store.database).admit(version)  # the first load after a start, without a key
    await asyncio.sleep(0)
