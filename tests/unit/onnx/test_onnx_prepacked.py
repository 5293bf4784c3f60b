"""Optimised sessions that are kept with their packed weights, and mapped by all workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmos.lib.errors import Unavailable
from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.onnx import prepacked
from llmos.servers.execution.engine.onnx.session import Session

WIDTH = 1024  # two matrices of 4 MiB
X = np.linspace(-1, 1, 3 * WIDTH, dtype=np.float32).reshape(3, WIDTH)


def model(path: Path, *, nan: bool = False) -> Path:
    """Write y = relu(x @ a) @ b, with something to say about itself."""
    random = np.random.default_rng(1)
    weights = {n: random.standard_normal((WIDTH, WIDTH), dtype=np.float32) for n in "ab"}
    if nan:
        weights["b"][5, 5] = np.nan
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    ends = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", WIDTH])] for n in ("x", "y")
    ]
    kept = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", *ends, kept)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(made, {"author": "me"})
    path.write_bytes(made.SerializeToString())
    return path


def spec(path: Path, state: Path | None) -> ModelSpec:
    kept = str(state) if state else ""  # nothing is kept without a state directory
    return ModelSpec("m@1", "onnx", "predict", {"model.onnx": path}, threads=1, state_dir=kept)


def entries(state: Path) -> list[Path]:
    return sorted((state / "execution" / "weights").glob("*"))


def private(path: Path) -> int:
    """Return the bytes of a file that this process maps and has changed."""
    changed, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = str(path) in line
        elif inside and line.startswith("Anonymous:"):  # pages of its own, not the file's
            changed += int(line.split()[1]) << 10
    return changed


@contextmanager
def no_packing() -> Iterator[None]:
    """Let nobody save a session meanwhile."""

    def fail(*_: Any) -> bool:
        raise AssertionError("packed again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepacked.Prepacked, "keep", fail)
        yield


def test_the_second_worker_maps_what_the_first_one_packed(tmp_path: Path) -> None:
    one = spec(model(tmp_path / "m.onnx"), tmp_path)
    plain = Session(spec(tmp_path / "m.onnx", None))
    assert entries(tmp_path) == []
    first = Session(one)
    (kept,) = entries(tmp_path)
    with no_packing():
        second = Session(one)
    expected = plain.run({"x": X}, [])["y"]
    for session in (first, second):
        assert np.array_equal(session.run({"x": X}, [])["y"], expected)
        assert session.metadata["author"] == "me"
        assert session.inputs == plain.inputs and session.outputs == plain.outputs
    weights = kept / "weights.bin"
    assert str(weights) in Path("/proc/self/maps").read_text()
    assert private(weights) == 0  # the pages are the file's, so everybody's


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    one = spec(model(tmp_path / "m.onnx"), tmp_path)
    expected = Session(one).run({"x": X}, [])["y"]
    (kept,) = entries(tmp_path)
    for name, left in (("weights.bin", 1000), ("model.onnx", 100), ("model.onnx", 0)):
        (kept / name).write_bytes((kept / name).read_bytes()[:left])
        assert np.array_equal(Session(one).run({"x": X}, [])["y"], expected)
        with no_packing():
            assert np.array_equal(Session(one).run({"x": X}, [])["y"], expected)


def test_other_weights_are_another_entry_and_a_bad_one_is_none(tmp_path: Path) -> None:
    Session(spec(model(tmp_path / "m.onnx"), tmp_path))
    with pytest.raises(Unavailable, match="not a number") as caught:
        Session(spec(model(tmp_path / "n.onnx", nan=True), tmp_path))
    assert caught.value.reason == "LOAD_FAILED"
    assert len(entries(tmp_path)) == 1


def test_without_room_it_runs_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    session = Session(spec(model(tmp_path / "m.onnx"), tmp_path))
    assert session.run({"x": X}, [])["y"].shape == (3, WIDTH)
    assert entries(tmp_path) == []


def test_what_a_dead_worker_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "execution" / "weights"
    (folder / ".999999999-x").mkdir(parents=True)
    (folder / ".999999999-x" / "weights.bin").write_bytes(b"half")
    Session(spec(model(tmp_path / "m.onnx"), tmp_path))
    assert len(entries(tmp_path)) == 1
