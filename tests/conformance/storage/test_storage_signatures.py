"""Signatures of versions, and what is checked at load: in process, over gRPC, through a kernel."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from exchange_world import Both, damage, encoder, exchange_world, fails_with, last
from model_files import tiny_gguf
from storage_checks import take
from storage_world import ALL_WAYS

from llmos.lib import signing
from llmos.lib.errors import DataLoss, FailedPrecondition, LLMOSError
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.model import Version
from llmos.servers.storage.signing.base import Verified
from llmos.servers.storage.signing.guard import Guard

all_ways = pytest.mark.parametrize("way", ALL_WAYS)
one_way = pytest.mark.parametrize("way", ["in process, SQLite"])


@pytest.fixture
async def both(way: str, state_dir: Path, store: LocalStorage) -> AsyncIterator[Both]:
    async with exchange_world(way.partition(",")[0], state_dir, store) as made:
        yield made


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


@all_ways
async def test_sign_verify_and_tamper(both: Both, tmp_path: Path, key: Path, way: str) -> None:
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
    if way == "in process, SQLite":  # the bytes are the same on every way, and the tool is slow
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
