"""The contract of data sets: import, versions, listing, delete, what is refused or cancelled."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dataset_world import DataWorld

from llmos.lib.errors import LLMOSError
from llmos.servers.storage.data.model import (
    Cleaning,
    DataFormat,
    Imported,
    Mode,
    Order,
    Reading,
    Rule,
    Splitting,
)

HALVES = Splitting((("train", 0.5), ("test", 0.5)))


def reviews(path: Path, rows: int = 200, step: int = 1) -> Path:
    lines = [f'"Review {i * step}: <b>quite</b> good",{i % 2}' for i in range(rows)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


async def test_import_says_what_it_is(world: DataWorld, tmp_path: Path) -> None:
    made = await world.take(reviews(tmp_path / "Reviews 1.csv"), license="CC0-1.0", job="j1")
    found = made.dataset
    assert not made.existed and found.ref == "reviews-1@1" and found.rows == 200
    assert [(c.name, c.type) for c in found.columns] == [("text", "string"), ("label", "int64")]
    assert (found.text_column, found.label_column) == ("text", "label")
    assert found.format is DataFormat.CSV and found.license == "CC0-1.0"
    assert [s.name for s in found.splits] == ["all"] and found.lineage.job == "j1"
    assert found.lineage.source.endswith("Reviews 1.csv") and found.lineage.step == "import"
    assert found.report is not None and found.report.rows_read == found.report.rows_kept == 200
    assert dict(found.report.labels) == {"0": 100, "1": 100}
    again = await world.datasets.get("reviews-1")
    assert again == found
    path = found.splits[0].path
    assert path is not None and path.stat().st_size == found.splits[0].size
    table = await world.table("reviews-1@1")
    assert table.num_rows == 200 and table.column("label").to_pylist()[:3] == [0, 1, 0]


async def test_same_data_is_same_version(world: DataWorld, tmp_path: Path) -> None:
    first = await world.take(reviews(tmp_path / "a.csv"), name="r")
    again = await world.take(reviews(tmp_path / "b.csv"), name="r")
    assert again.existed and again.dataset.ref == first.dataset.ref == "r@1"
    other = await world.take(reviews(tmp_path / "a.csv", step=2), name="r")
    assert not other.existed and other.dataset.ref == "r@2"
    elsewhere = await world.take(reviews(tmp_path / "a.csv"), name="s")
    assert elsewhere.dataset.ref == "s@1"
    assert elsewhere.dataset.splits[0].sha256 == first.dataset.splits[0].sha256


async def test_split_of_a_data_set_is_its_child(world: DataWorld, tmp_path: Path) -> None:
    await world.take(reviews(tmp_path / "a.csv"), name="r", license="MIT")
    made = (await world.take("dataset:r@1", splitting=HALVES)).dataset
    assert made.ref == "r@2" and made.lineage.parents == ("r@1",) and made.license == "MIT"
    assert made.lineage.step == "split" and made.rows == 200
    clean = Cleaning({Rule.HTML: Mode.APPLY})
    cleaned = (await world.take("dataset:r", cleaning=clean)).dataset
    assert cleaned.lineage.parents == ("r@2",) and cleaned.lineage.step == "clean"
    assert [s.name for s in cleaned.splits] == ["train", "test"]  # as they were
    texts = (await world.table(cleaned.ref, "test")).column("text").to_pylist()
    assert texts and not any("<b>" in text for text in texts)
    with pytest.raises(LLMOSError) as caught:
        await world.datasets.delete("r@1", False)
    assert caught.value.reason == "IN_USE" and "data set r@2" in caught.value.message
    assert await world.datasets.delete("r@1", True) > 0


async def test_a_lease_keeps_a_version_even_from_force(world: DataWorld, tmp_path: Path) -> None:
    await world.take(reviews(tmp_path / "a.csv"), name="r")
    lease = await world.leases.acquire_lease("dataset:r", "job 7", 60, "once")
    assert (lease.dataset, lease.model, lease.version) == (True, "r", 1)
    assert (await world.leases.acquire_lease("dataset:r@1", "job 7", 60, "once")).id == lease.id
    for force in (False, True):
        with pytest.raises(LLMOSError, match=f"'job 7' .lease {lease.id}. has a lease") as caught:
            await world.datasets.delete("r@1", force)
        assert caught.value.reason == "IN_USE"
    assert [one.id for one in await world.leases.list_leases("dataset:r")] == [lease.id]
    assert [one.id for one in await world.leases.list_leases("")] == [lease.id]
    assert (await world.leases.renew_lease(lease.id)).dataset
    for ref, reason in [
        ("dataset:r@2", "NO_SUCH_VERSION"),
        ("dataset:q", "NO_SUCH_DATASET"),
        ("dataset:", "BAD_NAME"),
        ("r", "NO_SUCH_MODEL"),
    ]:
        with pytest.raises(LLMOSError) as caught:
            await world.leases.acquire_lease(ref, "job 7", 60)
        assert caught.value.reason == reason
    assert await world.leases.release_lease(lease.id)
    assert await world.datasets.delete("r@1", False) > 0


async def test_delete_frees_only_what_nobody_else_has(world: DataWorld, tmp_path: Path) -> None:
    one = (await world.take(reviews(tmp_path / "a.csv"), name="one")).dataset
    await world.take(reviews(tmp_path / "a.csv"), name="two")
    assert await world.datasets.delete("one@1", False) == 0
    assert await world.datasets.delete("two@1", False) == one.size_bytes
    assert world.leftovers() == []
    with pytest.raises(LLMOSError) as caught:
        await world.datasets.delete("two@1", False)
    assert caught.value.reason == "NO_SUCH_DATASET"
    again = await world.take(reviews(tmp_path / "a.csv"), name="one")
    assert again.dataset.ref == "one@2"  # numbers are not reused


async def test_pages(world: DataWorld, tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        for step in (1, 2):
            await world.take(reviews(tmp_path / "x.csv", 5, step), name=name)
    refs, token = [], ""
    while True:
        page = await world.datasets.page("", 2, token)
        refs += [found.ref for found in page.datasets]
        assert all(found.report is None for found in page.datasets)
        token = page.next_token
        if not token:
            break
    assert refs == ["a@2", "a@1", "b@2", "b@1", "c@2", "c@1"]
    assert [d.ref for d in (await world.datasets.page("b", 0, "")).datasets] == ["b@2", "b@1"]
    for name, size, bad in (("", 1001, ""), ("", 2, "zzz")):
        with pytest.raises(LLMOSError) as caught:
            await world.datasets.page(name, size, bad)
        assert caught.value.reason == "BAD_PAGE"


async def test_names_and_references(world: DataWorld, tmp_path: Path) -> None:
    source = reviews(tmp_path / "a.csv")
    await world.take(source, name="reviews")
    for bad in ("../x", "a b", "x" * 129, "x" * 1_000_000, "\0"):
        error = await world.fails(source, name=bad)
        assert error.reason == "BAD_NAME"
    for ref, reason in (
        ("review", "NO_SUCH_DATASET"),
        ("reviews@9", "NO_SUCH_VERSION"),
        ("reviews@x y", "BAD_NAME"),
        ("", "BAD_NAME"),
    ):
        with pytest.raises(LLMOSError) as caught:
            await world.datasets.get(ref)
        assert caught.value.reason == reason and len(caught.value.message) < 300
    with pytest.raises(LLMOSError, match="reviews"):
        await world.datasets.get("review")
    with pytest.raises(LLMOSError) as caught:
        await world.datasets.delete("reviews", False)
    assert caught.value.reason == "BAD_NAME"


async def test_sources_and_options_that_are_wrong(world: DataWorld, tmp_path: Path) -> None:
    source = reviews(tmp_path / "a.csv")
    for bad, reason in (
        ("relative.csv", "NO_SUCH_SOURCE"),
        (str(tmp_path / "none.csv"), "NO_SUCH_SOURCE"),
        ("/dev/zero", "NO_SUCH_SOURCE"),
        ("/x" * 500_000, "NO_SUCH_SOURCE"),
        ("blob:abc", "BAD_DIGEST"),
        ("blob:" + "0" * 64, "NO_SUCH_BLOB"),
        ("dataset:none@1", "NO_SUCH_DATASET"),
    ):
        assert (await world.fails(bad)).reason == reason
    for order in (
        {"splitting": Splitting((("a", 0.5), ("b", 0.4)))},
        {"splitting": Splitting((("a", 0.5), ("a", 0.5)))},
        {"splitting": Splitting((("A/B", 1.0),))},
        {"splitting": Splitting((("a", float("nan")),))},
        {"reading": Reading(label_column="zzz")},
        {"reading": Reading(text_column="label")},
        {"reading": Reading(types={"text": "int99"})},
        {"reading": Reading(types={"zzz": "string"})},
        {"reading": Reading(encoding="klingon")},
        {"reading": Reading(delimiter="ab")},
        {"cleaning": Cleaning({Rule.LANGUAGE: Mode.APPLY})},
        {"cleaning": Cleaning(min_chars=9, max_chars=3)},
    ):
        error = await world.fails(source, **order)
        assert error.reason == "BAD_OPTION", error
    assert world.leftovers() == []


async def test_cancelled_import_keeps_nothing(world: DataWorld, tmp_path: Path) -> None:
    steps = world.datasets.import_dataset(Order(str(reviews(tmp_path / "a.csv", 200_000))))
    await anext(steps)
    await steps.aclose()
    async with asyncio.timeout(10):
        while world.leftovers():
            await asyncio.sleep(0.01)
    assert (await world.datasets.page("", 0, "")).datasets == []


async def test_blob_is_a_source(world: DataWorld, tmp_path: Path) -> None:
    data = reviews(tmp_path / "a.csv").read_bytes()
    digest = hashlib.sha256(data).hexdigest()

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    await world.store.write_blob(digest, pieces())
    made = await world.take(f"blob:{digest}", name="up")
    assert isinstance(made, Imported) and made.dataset.rows == 200
    assert made.dataset.lineage.source == f"blob:{digest}"
