"""Tokenising and pooling of text encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_text import LENGTH, text_files

from llmos.lib.encoder import TextEncoder, normalise
from llmos.lib.errors import InvalidArgument

HIDDEN = np.array([[[3, 0], [0, 8], [9, 9]], [[1, 0], [5, 5], [7, 7]]], np.float32)
MASK = np.array([[1, 1, 0], [1, 0, 0]], np.int64)


def with_pooling(folder: Path, pooling: dict[str, Any]) -> TextEncoder:
    files = text_files(folder)
    files["1_Pooling/config.json"].write_text(json.dumps(pooling))
    return TextEncoder(files)


@pytest.mark.parametrize(
    ("pooling", "first"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, [1.5, 4]),
        ({"pooling_mode_cls_token": True, "word_embedding_dimension": 2}, [3, 0]),
        ({"pooling_mode_max_tokens": True}, [3, 8]),
        ({"pooling_mode": "mean"}, [1.5, 4]),
        ({}, [1.5, 4]),
    ],
)
def test_pooling(tmp_path: Path, pooling: dict[str, Any], first: list[float]) -> None:
    vectors = with_pooling(tmp_path, pooling).pool(HIDDEN, MASK)
    expected = np.array([first, [1, 0]], np.float32)
    np.testing.assert_allclose(vectors, normalise(expected), atol=1e-6)


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        {"pooling_mode_weightedmean_tokens": True},
    ],
)
def test_other_pooling_is_refused(tmp_path: Path, pooling: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="mean, cls and max") as caught:
        with_pooling(tmp_path, pooling)
    assert caught.value.reason == "BAD_MODEL_FILE"


def test_a_zero_vector_stays_zero() -> None:
    np.testing.assert_array_equal(normalise(np.zeros((1, 4))), np.zeros((1, 4), np.float32))


def test_padding_and_truncation_of_the_file_are_not_ours(tmp_path: Path) -> None:
    encoder = TextEncoder(text_files(tmp_path))
    one, two = encoder.encode("abc"), encoder.encode("x" * 100)
    assert (len(one.ids), one.cut) == (5, False)
    assert (len(two.ids), two.cut) == (LENGTH, True)
    batch = encoder.batch([one, two])
    assert batch["input_ids"].shape == (2, LENGTH)
    assert batch["attention_mask"].sum(axis=1).tolist() == [5, LENGTH]
    assert TextEncoder(text_files(tmp_path), limit=16).max_length == 16


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "1_Pooling/config.json"])
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    files = text_files(tmp_path)
    files[name].write_text("{")
    with pytest.raises(InvalidArgument, match=name) as caught:
        TextEncoder(files)
    assert caught.value.reason == "BAD_MODEL_FILE"


def test_a_tokenizer_is_needed(tmp_path: Path) -> None:
    files = text_files(tmp_path)
    del files["tokenizer.json"]
    with pytest.raises(InvalidArgument, match="There is no tokenizer"):
        TextEncoder(files)
