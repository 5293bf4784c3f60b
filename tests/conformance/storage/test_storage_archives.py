"""Imports from tar and zip files, sound and hostile."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_files import tiny_encoder, tiny_gguf
from storage_checks import fails, take
from torch_files import tiny_script

from llmos.servers.storage.base import Storage
from llmos.servers.storage.model import Format

WAYS = ["in process"]  # the same calls over gRPC: test_storage_exchange.py


def left(state_dir: Path) -> list[Path]:
    return [p for p in (state_dir / "storage" / "incoming").rglob("*") if p.is_file()]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
async def test_a_model_in_an_archive(
    storage: Storage, tmp_path: Path, state_dir: Path, kind: str
) -> None:
    root = tiny_encoder(tmp_path / "src" / "some-folder")
    path = tmp_path / f"Tiny-Encoder.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in root.rglob("*"):
                archive.write(file, file.relative_to(root.parent))
    else:
        mode: Any = f"w:{kind.partition('.')[2]}"
        with tarfile.open(path, mode) as tar:
            tar.add(root, arcname="./some-folder")
    made = await take(storage, path)
    assert made.version.ref == "tiny-encoder@1" and len(made.version.files) == 7
    assert made.version.lineage.source == str(path) and left(state_dir) == []


async def test_torchscript_is_no_archive(storage: Storage, tmp_path: Path) -> None:
    made = await take(storage, tiny_script(tmp_path / "net.pt"))
    assert made.version.description.format is Format.TORCHSCRIPT
    assert [f.name for f in made.version.files] == ["model.pt"]


def zipped(path: Path, name: str, data: bytes, mode: int = 0o100644) -> Path:
    info = zipfile.ZipInfo("x")
    info.filename = name
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, data)
    return path


def tarred(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info, io.BytesIO())
    return path


async def test_hostile_archives(storage: Storage, tmp_path: Path, state_dir: Path) -> None:
    gguf = tiny_gguf(tmp_path / "m").read_bytes()
    z, t = tmp_path / "a.zip", tmp_path / "a.tar"
    whole = zipped(tmp_path / "w.zip", "model.gguf", gguf).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    at = whole.index(b"PK\x01\x02") + 24  # the length in the table of contents
    (tmp_path / "liar.zip").write_bytes(whole[:at] + b"\x05\0\0\0" + whole[at + 4 :])
    cases: list[tuple[Callable[[], Path], str]] = [
        (lambda: zipped(z, "../evil", gguf), "lies outside"),
        (lambda: zipped(z, "/etc/evil", gguf), "lies outside"),
        (lambda: zipped(z, "a/../../evil", gguf), "lies outside"),
        (lambda: zipped(z, "a\\..\\evil", gguf), "lies outside"),
        (lambda: zipped(z, "/".join("abcdefghij"), gguf), "lies outside"),
        (lambda: zipped(z, "y" * 60_000, gguf), "lies outside"),
        (lambda: zipped(z, "link", b"/etc/passwd", 0o120777), "a link"),
        (lambda: zipped(z, "bomb", bytes(80 << 20)), "zip bomb"),
        (lambda: tmp_path / "cut.zip", "damaged"),
        (lambda: tmp_path / "liar.zip", "damaged"),
        (lambda: tarred(t, "../evil"), "lies outside"),
        (lambda: tarred(t, "dev", tarfile.CHRTYPE), "a device"),
        (lambda: tarred(t, "link", tarfile.SYMTYPE), "a link"),
    ]
    for make, words in cases:
        error = await fails(storage, make())
        assert error.reason == "BAD_ARCHIVE" and words in error.message, (words, error)
        assert len(error.message) < 500
    assert left(state_dir) == [] and not list(tmp_path.parent.glob("**/evil"))


async def test_an_archive_without_a_model(storage: Storage, tmp_path: Path) -> None:
    error = await fails(storage, zipped(tmp_path / "x.zip", "readme.txt", b"hello"))
    assert error.reason == "BAD_MODEL_FILE" and "no model in this folder" in error.message
