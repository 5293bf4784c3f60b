"""Weights in a file that all workers map."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.torch import opaque
from llmos.servers.execution.engine.torch.build import build
from llmos.servers.execution.engine.torch.config import read_config
from llmos.servers.execution.engine.torch.image import BadImage, Image, write
from llmos.servers.execution.engine.torch.kv import KVCache, Span
from llmos.servers.execution.engine.torch.linear import Linear
from llmos.servers.execution.engine.torch.model import Llama
from llmos.servers.execution.engine.torch.native.layout import PackedLinear
from llmos.servers.execution.engine.torch.shelf import Shelf
from llmos.servers.execution.engine.torch.weights import SafetensorsWeights, Weights


def make(path: Path, tensors: dict[str, torch.Tensor]) -> Image:
    with path.open("wb") as file:
        write(file, tensors, {"layers": 3})
    return Image(path)


def test_plain_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b.weight": torch.randn(7).bfloat16(),
        "b.bias": torch.arange(6, dtype=torch.int8).view(2, 3),
        "scalar": torch.tensor(2.5),
    }
    image = make(tmp_path / "i", tensors)
    assert image.facts == {"layers": 3} and list(image.names()) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(image.tensor(name), tensor)
        assert image.tensor(name).data_ptr() % 64 == 0
    assert sorted(image.under("b.")) == ["bias", "weight"]
    kept = image.tensor("a")
    del image
    (tmp_path / "i").unlink()
    assert torch.equal(kept, tensors["a"])  # the tensor keeps the mapping


@pytest.mark.skipif(not opaque.possible(), reason="this torch has no way to map oneDNN's layouts")
def test_repacked_layers_compute_the_same_bits_when_mapped(tmp_path: Path) -> None:
    layer = Linear(torch.randn(96, 64), torch.randn(96))
    if not layer.parts()["weight"].is_mkldnn:
        pytest.skip("this CPU has no repacked layout")
    mapped = Linear.of(make(tmp_path / "i", layer.parts()).under(""))
    assert mapped.parts()["weight"].is_mkldnn
    for rows in (1, 3, 17):
        x = torch.randn(rows, 64)
        assert torch.equal(layer(x), mapped(x))


def test_int8_matrices_come_back(tmp_path: Path) -> None:
    packed = PackedLinear(torch.randn(40, 70), torch.randn(40))
    again = PackedLinear.of(packed.width, make(tmp_path / "i", packed.parts()).under(""))
    assert torch.equal(packed.dequantised(), again.dequantised())
    assert (again.c.outputs, again.c.inputs) == (packed.c.outputs, packed.c.inputs)


def test_damaged_images_are_found_out(tmp_path: Path) -> None:
    path = tmp_path / "i"
    make(path, {"a": torch.randn(4096)})
    whole = path.read_bytes()
    for bad in (b"", b"123", whole[:5000], b"\xff" * 8 + whole[8:], whole[:8] + b"?" + whole[9:]):
        path.write_bytes(bad)
        with pytest.raises(BadImage):
            Image(path)


def spec(tmp_path: Path) -> ModelSpec:
    (tmp_path / "m.gguf").write_bytes(b"x")
    return ModelSpec("m@1", "gguf", "generate", {"m.gguf": tmp_path / "m.gguf"})


def wait_for(path: Path) -> None:
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_shelf_keeps_finds_and_forgets(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path))
    model = spec(tmp_path)
    key = shelf.key(model, "float32", device="cpu")
    assert key == shelf.key(model, "float32", device="cpu")
    assert key != shelf.key(model, "int8", device="cpu")
    assert shelf.find(key) is None
    image = shelf.keep(key, {"a": torch.ones(3)}, {})
    assert image is not None and torch.equal(image.tensor("a"), torch.ones(3))
    path = tmp_path / "execution" / "weights" / f"{key}.weights"
    wait_for(path)
    found = shelf.find(key)
    assert found is not None and torch.equal(found.tensor("a"), torch.ones(3))
    os.utime(model.files["m.gguf"], (1, 1))  # another file under the same name
    assert shelf.key(model, "float32", device="cpu") != key
    os.utime(model.files["m.gguf"], (2, 2))  # storage notes so when a copy was used
    known = replace(model, digests={"m.gguf": "d1"})
    key_of_digest = shelf.key(known, "float32", device="cpu")
    os.utime(model.files["m.gguf"], (3, 3))
    assert shelf.key(known, "float32", device="cpu") == key_of_digest
    assert shelf.key(replace(model, digests={"m.gguf": "d2"}), "float32", device="cpu") != (
        key_of_digest
    )
    path.write_bytes(b"rubbish")
    assert shelf.find(key) is None and not path.exists()


def test_what_dead_writers_left_is_removed_and_a_full_disk_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(str(tmp_path))
    folder = tmp_path / "execution" / "weights"
    folder.mkdir(parents=True)
    (folder / ".4194305-half").write_bytes(b"x")  # over the largest process id
    assert shelf.keep("k", {"a": torch.ones(3)}, {}) is not None
    wait_for(folder / "k.weights")
    assert [p.name for p in folder.iterdir()] == ["k.weights"]
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert shelf.keep("big", {"a": torch.ones(1 << 16)}, {}) is None
    assert [p for p in folder.iterdir() if p.name != "k.weights"] == []


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_model_goes_on_over_its_image_once_it_is_written(
    precision: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answers come from what was unpacked; then that memory is given back."""
    shared = tiny.spec(state_dir=str(tmp_path))
    config, _ = read_config(shared)
    weights = SafetensorsWeights(shared)
    with torch.inference_mode():
        model = build(config, weights, torch.device("cpu"), precision, 1, shared)
        own = model.parts()[0]["embedding"].data_ptr()
        cache = KVCache(model.geometry, 64)
        before = model.forward(cache, [1, 2, 3], [Span([0], 0, 3)], [2])
        until = time.monotonic() + 60
        while model.parts()[0]["embedding"].data_ptr() == own:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert torch.equal(before, model.forward(cache, [1, 2, 3], [Span([0], 0, 3)], [2]))
        folder = tmp_path / "execution" / "weights"
        while not any(path.suffix == ".weights" for path in folder.iterdir()):
            assert time.monotonic() < until
            time.sleep(0.01)
        monkeypatch.setattr(Weights, "read", None)  # it is not needed again
        monkeypatch.setattr(Llama, "_probe_linear", None)  # nor is this
        again = build(config, weights, torch.device("cpu"), precision, 1, shared)
        assert torch.equal(before, again.forward(cache, [1, 2, 3], [Span([0], 0, 3)], [2]))


def test_what_was_probed_with_other_threads_is_probed_again(tiny: Any, tmp_path: Path) -> None:
    shared = tiny.spec(state_dir=str(tmp_path))
    config, _ = read_config(shared)
    with torch.inference_mode():
        whole, layers = build(
            config, SafetensorsWeights(shared), torch.device("cpu"), "float32", 1
        ).parts()
        other = {"threads": torch.get_num_threads() + 1, "linear_rows": 77}
        model = Llama(config, layers=layers, facts=other, **whole)
    assert model.facts()["threads"] == torch.get_num_threads()
    assert model.facts()["linear_rows"] != 77
