"""Formats by content: sound files are described, damaged ones are named, pickles refused."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_files import tiny_gguf, tiny_onnx, tiny_safetensors

from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.servers.storage.formats.describe import describe
from llmos.servers.storage.formats.kinds import Kind, kind_of
from llmos.servers.storage.model import Format, Task

Make = Callable[[Path], Path]


def refused(path: Path, **beside: Path) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        describe({path.name: path, **beside})
    assert len(caught.value.message) < 400
    return caught.value


@pytest.mark.parametrize(
    ("make", "suffix"),
    [(tiny_gguf, ".gguf"), (tiny_safetensors, ".safetensors"), (tiny_onnx, ".onnx")],
)
def test_every_truncation_is_found(tmp_path: Path, make: Make, suffix: str) -> None:
    whole = make(tmp_path / f"whole{suffix}").read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for length in {*range(0, len(whole), 7), *range(24), len(whole) - 1}:
        cut.write_bytes(whole[:length])
        error = refused(cut)
        assert error.reason == "BAD_MODEL_FILE" and error.message.startswith("cut."), length


@pytest.mark.parametrize("make", [tiny_gguf, tiny_safetensors, tiny_onnx])
def test_random_damage_never_breaks_the_reader(tmp_path: Path, make: Make) -> None:
    whole = make(tmp_path / "whole").read_bytes()
    damaged, dice = tmp_path / "damaged", random.Random(7)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(min(len(data), 700))] = dice.choice((0, 1, 0x7F, 0xFF, 0x80))
        damaged.write_bytes(data)
        try:
            describe({"damaged": damaged})
        except InvalidArgument as exc:
            assert exc.reason in ("BAD_MODEL_FILE", "PICKLE_REFUSED")


def gguf_header(tensors: int, pairs: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gguf_header(1 << 60, 0, b"\0" * 64), "claims"),
        (gguf_header(0, 1 << 60, b"\0" * 64), "claims"),
        (gguf_header(0, 1, struct.pack("<Q", 1 << 62) + b"\0" * 32), "truncated"),
        (gguf_header(0, 1, text("k") + struct.pack("<IIQ", 9, 4, 1 << 61)), "truncated"),
        (gguf_header(0, 1, text("k") + struct.pack("<IIQ", 9, 8, 1 << 61)), "claims"),
        (gguf_header(0, 1, text("k") + struct.pack("<IIQ", 9, 8, 1 << 20)), "truncated"),
        (gguf_header(0, 1, text("k") + struct.pack("<IIQ", 9, 9, 5) + b"\0" * 9), "truncated"),
        (gguf_header(0, 1, text("k") + struct.pack("<I", 99) + b"\0" * 9), "unknown metadata"),
        (gguf_header(0, 0, version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (gguf_header(0, 0), "no tensors"),
        (
            gguf_header(1, 0, text("t") + struct.pack("<IQIQ", 1, 32, 7777, 0) + b"\0" * 200),
            "tensor type 7777",
        ),
        (
            gguf_header(1, 0, text("t") + struct.pack("<IQIQ", 1, 31, 2, 0) + b"\0" * 200),
            "impossible",
        ),
        (
            gguf_header(1, 0, text("t") + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0)),
            "impossible",
        ),
        (
            gguf_header(
                2,
                0,
                text("t")
                + struct.pack("<IQIQ", 1, 64, 0, 0)
                + text("u")
                + struct.pack("<IQIQ", 1, 64, 0, 32)
                + b"\0" * 999,
            ),
            "overlap",
        ),
    ],
)
def test_lying_gguf_headers(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.gguf").write_bytes(data)
    assert words in refused(tmp_path / "a.gguf").message


def safetensors_file(header: object, body: int) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + b"\0" * body


F32 = {"dtype": "F32", "shape": [2]}


@pytest.mark.parametrize(
    "data",
    [
        safetensors_file({"a": {**F32, "data_offsets": [0, 8]}}, 9),
        safetensors_file({"a": {**F32, "data_offsets": [8, 16]}}, 16),
        safetensors_file({n: {**F32, "data_offsets": [0, 8]} for n in "ab"}, 8),
        safetensors_file({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, 8),
        safetensors_file({"a": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}}, 8),
        safetensors_file({}, 0),
        struct.pack("<Q", 50) + b"{" + b"x" * 80,
        struct.pack("<Q", 100_000_001) + b"{" + b" " * 80,
    ],
)
def test_lying_safetensors_headers(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    assert refused(tmp_path / "a.safetensors").reason == "BAD_MODEL_FILE"


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/../../b", "", "a\\b", "x/y/z", "./w", "not-there"]
)
def test_onnx_external_data_stays_beside_the_model(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 4096)
    folder = tmp_path / "m"
    folder.mkdir()
    path = tiny_onnx(folder / "m.onnx", external="w")
    raw = path.read_bytes()
    from onnx import load_model_from_string

    model = load_model_from_string(raw)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    assert refused(path, w=folder / "w").reason == "BAD_MODEL_FILE"


def test_short_onnx_external_data(tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "m.onnx", external="w")
    (tmp_path / "w").write_bytes(b"\0" * 100)
    error = refused(path, w=tmp_path / "w")
    assert "truncated" in error.message and error.message.startswith("w:")


def test_int8_is_told_by_the_operators(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(tiny_onnx(tmp_path / "a.onnx"), tmp_path / "q", weight_type=QuantType.QInt8)
    _, about = describe({"model.onnx": tmp_path / "q"})
    assert (about.format, about.task, about.dtype) == (Format.ONNX, Task.PREDICT, "int8")


def pickles() -> dict[str, bytes]:
    zipped, legacy, script = io.BytesIO(), io.BytesIO(), io.BytesIO()
    state = {"w": torch.zeros(2)}
    torch.save(state, zipped)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(script, "w") as archive:  # as TorchScript lays it out
        archive.writestr("m/constants.pkl", b"\x80\x02).")
        archive.writestr("m/code/__torch__.py", b"")
    return {
        "zip": zipped.getvalue(),
        "cut zip": zipped.getvalue()[:600],
        "legacy": legacy.getvalue(),
        "torchscript": script.getvalue(),
        **{f"protocol {p}": pickle.dumps({"a": [1, "x"]}, protocol=p) for p in range(6)},
    }


@pytest.mark.parametrize("kind", list(pickles()))
@pytest.mark.parametrize("name", ["weights.bin", "model.safetensors", "model.pt"])
def test_pickle_is_refused_whatever_its_name(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(pickles()[kind])
    error = refused(tmp_path / name)
    assert error.reason == "PICKLE_REFUSED"
    assert "llmos-ctl model convert" in error.message


@pytest.mark.parametrize("data", [b"{}", b"hello", b"\x08", b"(hello)", b"]", b"PK\x03\x04", b"."])
def test_other_files_are_no_model(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    assert kind_of(tmp_path / "x.bin") is Kind.OTHER
    assert "not a model" in refused(tmp_path / "x.bin").message


def test_a_model_needs_no_telling_name(tmp_path: Path) -> None:
    assert describe({"x.bin": tiny_gguf(tmp_path / "x.bin")})[1].format is Format.GGUF
    assert describe({"y.dat": tiny_onnx(tmp_path / "y.dat")})[1].format is Format.ONNX
    about = describe({"z": tiny_safetensors(tmp_path / "z")})[1]
    assert (about.format, about.task) == (Format.SAFETENSORS, Task.UNSPECIFIED)
    assert (about.parameters, about.dtype) == (128, "F32")


@pytest.mark.parametrize(
    ("config", "task", "context"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, Task.GENERATE, 0),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, Task.EMBED, 0),
        (
            {"architectures": ["BertForSequenceClassification"], "model_type": "bert"},
            Task.UNSPECIFIED,
            0,
        ),
        ({"architectures": "BertModel", "model_type": ["x"]}, Task.UNSPECIFIED, 0),
        ({"model_type": "bert", "max_position_embeddings": 512}, Task.EMBED, 512),
        ({"model_type": "bert", "max_position_embeddings": 1 << 80}, Task.EMBED, 0),
        ({"model_type": "bert", "max_position_embeddings": True}, Task.EMBED, 0),
    ],
)
def test_config_tells_the_task(tmp_path: Path, config: object, task: Task, context: int) -> None:
    files = {"m.safetensors": tiny_safetensors(tmp_path / "m.safetensors")}
    for name, value in (("config.json", config), ("tokenizer.json", {})):
        (tmp_path / name).write_text(json.dumps(value))
        files[name] = tmp_path / name
    about = describe(files)[1]
    assert (about.task, about.context_length) == (task, context)


@pytest.mark.parametrize("damage", ["[]", "{", "\xff", "[" * 100_000])
def test_damaged_config_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "config.json").write_text(damage)
    path = tiny_safetensors(tmp_path / "m.safetensors")
    error = refused(path, **{"config.json": tmp_path / "config.json"})
    assert error.reason == "BAD_MODEL_FILE" and error.message.startswith("config.json")


@pytest.mark.parametrize(
    ("module", "make"),
    [("gguf", tiny_gguf), ("safetensors", tiny_safetensors), ("onnx", tiny_onnx)],
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, make: Make
) -> None:
    path = make(tmp_path / "model")
    monkeypatch.setitem(sys.modules, module, None)  # what the import system does for "not there"
    with pytest.raises(FailedPrecondition, match=r"pip install 'llmos\[storage\]'") as caught:
        describe({"model": path})
    assert caught.value.reason == "MISSING_EXTRA"


@pytest.mark.parametrize(
    ("beside", "kind", "template"),
    [
        ({"tokenizer.json": '{"version": "1.0", "model": {"type": "BPE"}}'}, "BPE", ""),
        ({"tokenizer.json": '{"model": {"type":"WordPiece", "vocab": {}}}'}, "WordPiece", ""),
        ({"tokenizer.model": "x", "chat_template.jinja": "{{ x }}"}, "SentencePiece", "{{ x }}"),
        ({"tokenizer_config.json": '{"chat_template": "{{ y }}"}'}, "", "{{ y }}"),
        (
            {
                "tokenizer_config.json": '{"chat_template": [{"name": "rag", "template": "a"}, '
                '{"name": "default", "template": "b"}]}'
            },
            "",
            "b",
        ),
        ({"tokenizer_config.json": '{"chat_template": [1, "x"]}'}, "", ""),
        ({"tokenizer_config.json": '{"chat_template": "' + "x" * 300_000 + '"}'}, "", ""),
    ],
)
def test_tokenizer_and_chat_template(
    tmp_path: Path, beside: dict[str, str], kind: str, template: str
) -> None:
    files = {"m.safetensors": tiny_safetensors(tmp_path / "m.safetensors")}
    for name, text in beside.items():
        (tmp_path / name).write_text(text)
        files[name] = tmp_path / name
    about = describe(files)[1]
    assert (about.tokenizer, about.chat_template) == (kind, template)


def test_gguf_says_its_tokenizer(tmp_path: Path) -> None:
    assert describe({"m": tiny_gguf(tmp_path / "m.gguf")})[1].tokenizer == "BPE"
