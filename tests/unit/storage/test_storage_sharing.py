"""Tensors stored once: what a fine-tune costs, that its file is the same, and what deletes free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from storage_checks import content, take

from llmos.lib.errors import DataLoss
from llmos.servers.storage.crypt.keys import KeyRing
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
