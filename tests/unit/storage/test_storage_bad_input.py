"""Bad model files, each with the exact words that a user gets."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from model_files import tiny_onnx, tiny_safetensors

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage import names
from llmos.servers.storage.formats.describe import describe

F32 = {"dtype": "F32", "shape": [2]}


def tensors(header: object, body: int) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + b"\0" * body


def says(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(InvalidArgument) as caught:
        describe({path.name: path})
    assert caught.value.reason == "BAD_MODEL_FILE"
    return caught.value.message


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: tensors({n: {**F32, "data_offsets": [0, 8]} for n in "ab"}, 8),
            "m.safetensors: damaged safetensors: invalid offset for tensor",
        ),
        (
            lambda: tensors(
                {"a": {**F32, "data_offsets": [0, 8]}, "b": {**F32, "data_offsets": [4, 12]}}, 12
            ),
            "m.safetensors: damaged safetensors: invalid offset for tensor",
        ),
        (
            lambda: struct.pack("<Q", 90_000_000) + b"{" + b" " * 80,
            "m.safetensors: truncated: it needs 90,000,008 bytes and has 89; download or copy it "
            "again.",
        ),
        (
            lambda: tensors({"a": {**F32, "data_offsets": [0, 8]}}, 4),
            "m.safetensors: damaged safetensors: truncated, or longer than its tensors; download "
            "or export it again.",
        ),
        (lambda: b"", "m.safetensors: its name says safetensors but it is empty; download or"),
    ],
    ids=["same offsets", "overlapping offsets", "header length lies", "cut short", "empty"],
)
def test_safetensors(tmp_path: Path, make: Callable[[], bytes], words: str) -> None:
    assert words.lower() in says(tmp_path / "m.safetensors", make()).lower()


def test_onnx_with_external_data_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 4096)
    (tmp_path / "m").mkdir()
    path = tiny_onnx(tmp_path / "m" / "net.onnx", external="w")
    from onnx import load_model_from_string

    model = load_model_from_string(path.read_bytes())
    model.graph.initializer[0].external_data[0].value = "../secret"
    assert says(path, model.SerializeToString()) == (
        "net.onnx: tensor w has its data at '../secret', which is not a file beside the model; "
        "export it again."
    )


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a//x", "a\\x", "x" * 1_000_000, "a/b/c"])
def test_file_names_that_leave_their_folder(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        names.check_file_name(name)
    assert caught.value.reason == "BAD_NAME" and len(caught.value.message) < 300
    assert "is not a file name within a version" in caught.value.message


def test_a_sound_file_with_bytes_behind_it(tmp_path: Path) -> None:
    data = tiny_safetensors(tmp_path / "m.safetensors").read_bytes()
    assert "longer than its tensors" in says(tmp_path / "m.safetensors", data + b"\0")
