"""Exports and conversions: in process, over gRPC and through a kernel, on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exchange_world import Both, damage, encoder, exchange_world, fails_with, last
from local_registry import oci_registry
from model_files import sparse_safetensors, tiny_encoder, tiny_gguf
from storage_checks import fails, take
from storage_world import ALL_WAYS
from torch_files import Net, tiny_checkpoint, tiny_script

from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.model import Format, Progress, Registered
from llmos.servers.storage.places.exchange import Exported

all_ways = pytest.mark.parametrize("way", ALL_WAYS)
some_ways = pytest.mark.parametrize(
    "way", ["in process, SQLite", "gRPC, SQLite", "kernel, PostgreSQL"]
)
over_grpc = pytest.mark.parametrize("way", ["gRPC, SQLite"])
one_way = pytest.mark.parametrize("way", ["in process, SQLite"])


@pytest.fixture
async def both(way: str, state_dir: Path, store: LocalStorage) -> AsyncIterator[Both]:
    async with exchange_world(way.partition(",")[0], state_dir, store) as made:
        yield made


# Exports.


@all_ways
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


@some_ways
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


@some_ways
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
