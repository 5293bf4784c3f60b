"""Splits and shares: deterministic, without leaks, every row once, whatever the data."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.lib.shards import Order, share
from llmos.servers.storage.data.content import digests
from llmos.servers.storage.data.model import Splitting
from llmos.servers.storage.data.seen import Scratch, Seen
from llmos.servers.storage.data.splits import Splitter

THREE = (("train", 0.6), ("validation", 0.2), ("test", 0.2))
WORDS = st.sampled_from(
    ["Hello", "hello", "HELLO ", "héllo", "wor ld", "wor-ld", "", "!", "?", "１"]
)
TEXTS = st.lists(st.lists(WORDS, max_size=3).map(" ".join), min_size=1, max_size=60)


def assign(texts: list[str], splitting: Splitting, labels: list[int] | None = None) -> list[int]:
    batch = pa.RecordBatch.from_pydict({"text": texts, "label": labels or [0] * len(texts)})
    with TemporaryDirectory() as folder:
        scratch = Scratch(Path(folder))
        splitter = Splitter(splitting, ["text"], "label", scratch)
        if splitter.two_passes:
            splitter.look(batch)
        found = splitter.assign(batch)
        scratch.close()
    return found


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, seed=st.integers(0, 2**64 - 1), stratify=st.booleans())
def test_duplicates_never_straddle(texts: list[str], seed: int, stratify: bool) -> None:
    splitting = Splitting(THREE, seed, stratify)
    found = assign(texts, splitting)
    batch = pa.RecordBatch.from_pydict({"text": texts})
    places: dict[bytes, int] = {}
    for content, split in zip(digests(batch, ["text"], normal=True), found, strict=True):
        assert places.setdefault(content, split) == split
    assert assign(texts, splitting) == found


@settings(max_examples=40, deadline=None)
@given(texts=TEXTS, more=TEXTS, seed=st.integers(0, 9))
def test_rows_added_later_move_no_others(texts: list[str], more: list[str], seed: int) -> None:
    splitting = Splitting(THREE, seed)
    assert assign(texts + more, splitting)[: len(texts)] == assign(texts, splitting)


def test_shares_are_what_was_asked() -> None:
    texts = [f"row {i}" for i in range(5000)]
    found = assign(texts, Splitting(THREE, 3))
    assert [round(found.count(i) / 5000, 1) for i in range(3)] == [0.6, 0.2, 0.2]
    assert assign(texts, Splitting(THREE, 4)) != found
    assert found[:8] == [0, 0, 2, 2, 0, 2, 0, 0]  # for ever


def test_stratified_shares_are_exact_in_every_label() -> None:
    labels = [0] * 1000 + [1] * 10 + [2] * 50
    texts = [f"row {i}" for i in range(len(labels))]
    found = assign(texts, Splitting(THREE, 1, stratify=True), labels)
    for label, count in ((0, 1000), (1, 10), (2, 50)):
        mine = [split for split, at in zip(found, labels, strict=True) if at == label]
        assert [mine.count(i) for i in range(3)] == [count * 6 // 10, count // 5, count // 5]


@settings(max_examples=100, deadline=None)
@given(
    groups=st.lists(st.integers(1, 30), max_size=8),
    seed=st.integers(0, 2**64 - 1),
    workers=st.integers(1, 12),
    epoch=st.integers(0, 5),
)
def test_every_row_once_for_any_workers(
    groups: list[int], seed: int, workers: int, epoch: int
) -> None:
    order, total = Order(groups, seed, epoch), sum(groups)
    found = []
    for worker in range(workers):
        start, stop = share(total, worker, workers)
        assert total // workers <= stop - start <= -(-total // workers)
        for piece in order.pieces(start, stop):
            rows = order.rows(piece)
            inside = range(piece.start, piece.stop) if rows is None else rows.tolist()
            found += [(piece.group, row) for row in inside]
    assert sorted(found) == [(g, r) for g, size in enumerate(groups) for r in range(size)]


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.integers(0, 40), max_size=200), size=st.integers(1, 50))
def test_seen_is_a_set_in_memory_and_on_disk(values: list[int], size: int) -> None:
    rows = [value.to_bytes(16, "big") for value in values]
    with TemporaryDirectory() as folder, patch("llmos.servers.storage.data.seen._SMALL", 10):
        scratch = Scratch(Path(folder))
        seen, known = Seen(scratch, "x"), set[bytes]()
        for at in range(0, len(rows), size):
            some = rows[at : at + size]
            expected = []
            for row in some:
                expected.append(row in known)
                known.add(row)
            assert seen.add(some) == expected
        scratch.close()
