"""Imports from a hub, by the real huggingface_hub code, from a small hub on this host."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
from local_hub import LocalHub, local_hub
from model_files import tiny_encoder, tiny_gguf, tiny_onnx, tiny_safetensors
from storage_checks import fails, take
from torch_files import tiny_checkpoint

from llmos.servers.storage.base import Storage
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.model import Format, Progress, Task
from llmos.servers.storage.places import transfer

WAYS = ["in process"]  # the same calls over gRPC: test_storage_exchange.py


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with local_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        # The optimizer's modules turn it on when they are imported, also into this process.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        for name in ("HF_HUB_CACHE", "HF_XET_CACHE"):
            monkeypatch.setattr(huggingface_hub.constants, name, str(tmp_path / "hf"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        yield served


def encoder(folder: Path) -> dict[str, bytes]:
    root = tiny_encoder(folder)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def incoming(state_dir: Path) -> list[Path]:
    return [p for p in (state_dir / "storage" / "incoming").rglob("*") if p.is_file()]


async def test_a_model_of_a_hub(
    storage: Storage, hub: LocalHub, tmp_path: Path, state_dir: Path
) -> None:
    files = encoder(tmp_path / "enc") | {"pytorch_model.bin": b"\x80\x02}.", "logo.png": b"x" * 99}
    commit = hub.add("acme/Tiny-Encoder", files)
    made = await take(storage, "hf:acme/Tiny-Encoder")
    about = made.version.description
    assert (made.version.name, about.format, about.task) == (
        "tiny-encoder",
        Format.SAFETENSORS,
        Task.EMBED,
    )
    assert made.version.lineage.source == f"hf:acme/Tiny-Encoder@{commit}"
    names = {file.name for file in made.version.files}
    assert names == files.keys() - {"pytorch_model.bin", "logo.png", "train.py", "data_config.json"}
    assert incoming(state_dir) == []
    assert hub.served < sum(map(len, files.values()))  # what is not wanted is not asked for
    assert (await take(storage, f"hf:acme/Tiny-Encoder@{commit}")).existed


async def test_revisions_are_versions(storage: Storage, hub: LocalHub, tmp_path: Path) -> None:
    files = encoder(tmp_path / "enc")
    hub.add("acme/tiny", files)
    newer = tiny_safetensors(tmp_path / "n", seed=7).read_bytes()
    hub.add("acme/tiny", files | {"model.safetensors": newer}, branch="v2")
    assert (await take(storage, "hf:acme/tiny")).version.ref == "tiny@1"
    assert (await take(storage, "hf:acme/tiny@v2")).version.ref == "tiny@2"
    error = await fails(storage, "hf:acme/tiny@v3")
    assert error.reason == "NO_SUCH_SOURCE" and "no such revision" in error.message


async def test_one_of_several_files(storage: Storage, hub: LocalHub, tmp_path: Path) -> None:
    files = {
        "tiny.Q4.gguf": tiny_gguf(tmp_path / "a").read_bytes(),
        "tiny.Q8.gguf": tiny_gguf(tmp_path / "b", seed=1).read_bytes(),
        "README.md": b"---\nlicense: mit\n---\n",
    }
    commit = hub.add("acme/tiny-GGUF", files)
    error = await fails(storage, "hf:acme/tiny-GGUF")
    assert error.reason == "BAD_MODEL_FILE" and "#FILE" in error.message
    made = await take(storage, "hf:acme/tiny-GGUF#tiny.Q8.gguf", "tiny")
    assert made.version.lineage.source == f"hf:acme/tiny-GGUF@{commit}#tiny.Q8.gguf"
    assert made.version.files[0].size == len(files["tiny.Q8.gguf"])


async def test_onnx_with_external_data(storage: Storage, hub: LocalHub, tmp_path: Path) -> None:
    net = tiny_onnx(tmp_path / "model.onnx", external="model.onnx_data").read_bytes()
    data = (tmp_path / "model.onnx_data").read_bytes()
    hub.add("acme/net", {"onnx/model.onnx": net, "onnx/model.onnx_data": data})
    made = await take(storage, "hf:acme/net")
    assert [f.size for f in made.version.files] == [len(net), len(data)]


async def test_hostile_names(storage: Storage, hub: LocalHub, tmp_path: Path) -> None:
    net = tiny_onnx(tmp_path / "m").read_bytes()
    names = ("/model.onnx_evil", "../model.onnx_evil", "onnx/../../model.onnx_evil", "x" * 5000)
    hub.add("acme/evil", {"model.onnx": net, **{name: b"evil" for name in names}})
    made = await take(storage, "hf:acme/evil")
    assert [f.name for f in made.version.files] == ["model.onnx"]
    assert not Path("/model.onnx_evil").exists()
    error = await fails(storage, "hf:acme/evil#/model.onnx_evil")
    assert error.reason == "BAD_MODEL_FILE" and "no file" in error.message


async def test_only_pickles(storage: Storage, hub: LocalHub, tmp_path: Path) -> None:
    data = tiny_checkpoint(tmp_path / "x.bin").read_bytes()
    hub.add("acme/old", {"pytorch_model.bin": data, "config.json": b"{}"})
    error = await fails(storage, "hf:acme/old")
    assert error.reason == "PICKLE_REFUSED" and hub.served == 0
    hub.add("acme/liar", {"model.safetensors": data, "config.json": b"{}"})
    assert (await fails(storage, "hf:acme/liar")).reason == "PICKLE_REFUSED"


async def test_a_private_model(
    storage: Storage, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("acme/secret", encoder(tmp_path / "enc"))
    hub.token = "hf_right"
    error = await fails(storage, "hf:acme/secret")
    assert error.reason == "SOURCE_REFUSED" and "HF_TOKEN" in error.message
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    error = await fails(storage, "hf:acme/secret")
    assert error.reason == "SOURCE_REFUSED" and "hf_wrong" not in error.message
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert (await take(storage, "hf:acme/secret")).version.ref == "secret@1"


async def test_a_broken_download_goes_on(
    storage: Storage,
    hub: LocalHub,
    tmp_path: Path,
    state_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "_PAUSE_S", 0)
    files = encoder(tmp_path / "enc")
    files["model.safetensors"] = tiny_safetensors(tmp_path / "m", rows=40_000).read_bytes()
    hub.add("acme/tiny", files)
    hub.cut_after = 700_000
    error = await fails(storage, "hf:acme/tiny")
    assert error.reason == "SOURCE_UNREACHABLE" and "no connection" in error.message
    assert any(path.stat().st_size >= 500_000 for path in incoming(state_dir))  # kept to go on
    hub.cut_after, hub.served = -1, 0
    assert (await take(storage, "hf:acme/tiny")).version.ref == "tiny@1"
    assert 0 < hub.served < sum(map(len, files.values())) - 500_000
    assert incoming(state_dir) == []


async def test_cancelling_keeps_only_what_a_next_try_uses(
    storage: Storage, hub: LocalHub, tmp_path: Path, state_dir: Path, store: LocalStorage
) -> None:
    files = encoder(tmp_path / "enc")
    files["model.safetensors"] = tiny_safetensors(tmp_path / "m", rows=400_000).read_bytes()
    hub.add("acme/big", files)
    steps = storage.import_model("hf:acme/big", "big")
    async for step in steps:
        assert isinstance(step, Progress)
        if step.stage.startswith("downloading model"):
            break
    await steps.aclose()
    async with asyncio.timeout(10):
        while (await fails_or_none(storage, "big")) is None:
            await asyncio.sleep(0.01)
    store.incoming.collect(0)
    async with asyncio.timeout(10):
        while incoming(state_dir):
            store.incoming.collect(0)
            await asyncio.sleep(0.05)


async def fails_or_none(storage: Storage, ref: str) -> str | None:
    from llmos.lib.errors import NotFound

    try:
        await storage.get_version(ref)
    except NotFound as exc:
        return exc.reason
    return None


async def test_offline_takes_the_cache(
    storage: Storage, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add("acme/tiny", encoder(tmp_path / "enc"))
    path = await asyncio.to_thread(
        huggingface_hub.snapshot_download, "acme/tiny", endpoint=hub.url, cache_dir=tmp_path / "hf"
    )
    assert Path(path).name == commit
    served = hub.served
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    made = await take(storage, "hf:acme/tiny")
    assert made.version.lineage.source == f"hf:acme/tiny@{commit}" and hub.served == served
    error = await fails(storage, "hf:acme/other")
    assert error.reason == "SOURCE_UNREACHABLE" and "HF_HUB_OFFLINE" in error.message


async def test_no_hub_and_bad_sources(
    storage: Storage, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await fails(storage, "hf:acme/none")).reason == "SOURCE_REFUSED"
    for source in ("hf:", "hf:../x", "hf:a/b/c", "hf:a@", "hf:a/b#../x", "hf:" + "x" * 1_000_000):
        error = await fails(storage, source)
        assert error.reason in ("BAD_SOURCE", "SOURCE_REFUSED") and len(error.message) < 500
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert (await fails(storage, "hf:acme/none")).reason == "SOURCE_UNREACHABLE"
