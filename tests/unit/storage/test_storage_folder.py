"""Folders: which files are the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from model_files import tiny_encoder, tiny_gguf, tiny_onnx, tiny_safetensors

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage import sources
from llmos.servers.storage.formats.describe import describe


def files(path: Path) -> list[str]:
    found = sources.find(str(path)).files
    describe(dict(found))
    return [name for name, _ in found]


def refused(path: Path) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        sources.find(str(path))
    return caught.value


def test_pickle_beside_safetensors_is_left_out(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}.")
    assert "pytorch_model.bin" not in files(folder)


def test_only_pickle_is_refused(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    (folder / "model.safetensors").rename(folder / "gone")
    (folder / "gone").write_bytes(b"\x80\x02}.")
    assert refused(folder).reason == "PICKLE_REFUSED"


def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    (folder / "model.safetensors").write_bytes(b"")
    assert refused(folder).message.startswith("model.safetensors: ")


def test_several_models_in_one_folder(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "a.gguf")
    tiny_gguf(tmp_path / "b.gguf", seed=1)
    error = refused(tmp_path)
    assert error.reason == "BAD_MODEL_FILE" and "a.gguf, b.gguf" in error.message
    assert files(tmp_path / "b.gguf") == ["model.gguf"]


def test_one_of_several_onnx_files_brings_the_tokenizer(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "enc")
    (folder / "onnx").mkdir()
    tiny_onnx(folder / "onnx" / "model.onnx")
    tiny_onnx(folder / "onnx" / "model_int8.onnx", external="model_int8.onnx_data")
    assert files(folder)[0] == "model.safetensors"
    found = files(folder / "onnx" / "model_int8.onnx")
    assert found[:2] == ["model.onnx", "model_int8.onnx_data"]
    assert {"tokenizer.json", "config.json", "1_Pooling/config.json"} < set(found)
    (folder / "model.safetensors").unlink()
    assert files(folder)[0] == "model.onnx"


def test_a_bare_file_takes_nothing_from_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "LICENSE").write_text("of something else")
    tiny_safetensors(tmp_path / "weights.safetensors")
    assert files(tmp_path / "weights.safetensors") == ["model.safetensors"]


def shards(folder: Path, weight_map: dict[str, str]) -> None:
    tiny_encoder(folder)
    (folder / "model.safetensors").unlink()
    tiny_safetensors(folder / "model-00001-of-00002.safetensors", name="a")
    tiny_safetensors(folder / "model-00002-of-00002.safetensors", name="b")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_sharded_safetensors(tmp_path: Path) -> None:
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    shards(tmp_path / "m", names)
    found = sources.find(str(tmp_path / "m"))
    main, about = describe(dict(found.files))
    assert main == names["a"] and about.parameters == 256
    assert {*names.values(), "model.safetensors.index.json"} < {n for n, _ in found.files}


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "model-00001-of-00002.safetensors", "b": "../secret"},
        {"a": "model-00001-of-00002.safetensors", "b": "absent.safetensors"},
        {"a": "model-00001-of-00002.safetensors", "z": "model-00002-of-00002.safetensors"},
        {},
        {"a": 1},
    ],
)
def test_bad_shard_index(tmp_path: Path, weight_map: dict[str, str]) -> None:
    shards(tmp_path / "m", weight_map)
    with pytest.raises(InvalidArgument) as caught:
        describe(dict(sources.find(str(tmp_path / "m")).files))
    assert caught.value.reason == "BAD_MODEL_FILE"


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    folder = tiny_encoder(tmp_path / "enc")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "secret.json")
    assert "config.json" not in files(folder)
    onnx = tiny_onnx(folder / "net.onnx", external="net.data")
    (folder / "net.data").rename(tmp_path / "net.data")
    (folder / "net.data").symlink_to(tmp_path / "net.data")
    assert "net.data" in refused(onnx).message


def test_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--Tiny"
    real = tiny_encoder(tmp_path / "real")
    blobs, snapshot = cache / "blobs", cache / "snapshots" / ("0a" * 20)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, name in enumerate(("model.safetensors", "config.json", "tokenizer.json")):
        (real / name).rename(blobs / str(i))
        (snapshot / name).symlink_to(f"../../blobs/{i}")
    assert files(snapshot) == ["model.safetensors", "config.json", "tokenizer.json"]
    assert sources.find(str(snapshot)).name == "tiny"
