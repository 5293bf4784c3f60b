"""The onnx engine on small real models."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import tiny_onnx
from onnx import TensorProto, helper
from tiny_text import DIM, LENGTH, save_graph, table, text_files, text_onnx

from llmos.lib.encoder import TextEncoder
from llmos.lib.errors import FailedPrecondition, InvalidArgument, LLMOSError, Unavailable
from llmos.servers.execution.engine import onnx as engine_onnx
from llmos.servers.execution.engine.base import Engine, Generation, ModelSpec
from llmos.servers.execution.engine.onnx import bfloat16
from llmos.servers.execution.engine.onnx.weights import not_numbers


def spec(files: dict[str, Path], task: str = "predict", **more: Any) -> ModelSpec:
    return ModelSpec("m@1", "onnx", task, files, threads=1, **more)


@pytest.fixture(scope="module")
def encoder_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoder")
    return {"model.onnx": text_onnx(folder / "model.onnx"), **text_files(folder)}


@pytest.fixture
def encoder(encoder_files: dict[str, Path]) -> Iterator[Engine]:
    engine = engine_onnx.load(spec(encoder_files, "embed"))
    yield engine
    engine.close()


@pytest.fixture
def matrix(tmp_path: Path) -> Iterator[Engine]:
    engine = engine_onnx.load(spec({"model.onnx": tiny_onnx(tmp_path / "m.onnx")}))
    yield engine
    engine.close()


def expected(text: str, encoder: TextEncoder) -> Any:
    rows = table()[list(encoder.encode(text).ids)]
    mean = rows.mean(axis=0)
    return mean / np.linalg.norm(mean)


async def test_embeds_as_computed_by_hand(encoder: Engine, encoder_files: dict[str, Path]) -> None:
    texts = ["a", "the quick brown fox", "z" * 200, "two words"]
    result = await encoder.embed(texts)
    own = TextEncoder(encoder_files)
    assert result.vectors.shape == (4, DIM) and result.vectors.dtype == np.float32
    for text, vector in zip(texts, result.vectors, strict=True):
        np.testing.assert_allclose(vector, expected(text, own), atol=1e-6)
    assert list(result.truncated) == [2]
    assert result.prompt_tokens == sum(len(own.encode(t).ids) for t in texts)
    assert encoder.info.context_length == LENGTH


async def test_many_callers_get_their_own_vectors_in_order(
    encoder: Engine, encoder_files: dict[str, Path]
) -> None:
    own = TextEncoder(encoder_files)
    requests = [[f"caller {i} text {j} " + "x" * (j % 40) for j in range(i)] for i in range(1, 60)]
    results = await asyncio.gather(*(encoder.embed(r) for r in requests))
    for texts, result in zip(requests, results, strict=True):
        wanted = np.stack([expected(t, own) for t in texts])
        np.testing.assert_allclose(result.vectors, wanted, atol=1e-6)


async def test_a_large_request_does_not_hold_up_a_small_one(encoder: Engine) -> None:
    large = asyncio.create_task(encoder.embed([f"{i} " + "x" * 40 for i in range(2048)]))
    await asyncio.sleep(0.01)
    await encoder.embed(["short"])
    assert not large.done()
    assert (await large).vectors.shape == (2048, DIM)


async def test_cancelled_work_is_dropped_and_others_go_on(encoder: Engine) -> None:
    large = asyncio.create_task(encoder.embed(["x" * 40] * 2048))
    await asyncio.sleep(0.01)
    large.cancel()
    with pytest.raises(asyncio.CancelledError):
        await large
    assert (await encoder.embed(["next"])).vectors.shape == (1, DIM)


async def test_the_loop_is_not_blocked(encoder: Engine) -> None:
    work = asyncio.create_task(encoder.embed(["x" * 40] * 2048))
    turns = 0
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await work).vectors.shape == (2048, DIM)
    assert turns > 100  # work done in the loop itself would leave it a handful


@pytest.mark.parametrize("texts", [[], ["a", ""]])
async def test_nothing_to_embed_is_refused(encoder: Engine, texts: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await encoder.embed(texts)
    assert caught.value.reason == "EMPTY_INPUT"


def test_tokenizes_with_the_models_own_tokens(encoder: Engine) -> None:
    ids, pieces = encoder.tokenize("ab")
    assert pieces == ["[CLS]", "a", "##b", "[SEP]"] and len(ids) == 4


async def test_wrong_tasks_say_what_the_model_does(encoder: Engine, matrix: Engine) -> None:
    for act in (
        lambda: encoder.generate(Generation(prompt="a")),
        lambda: matrix.tokenize("a"),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            act()
        assert caught.value.reason == "WRONG_TASK"
    with pytest.raises(FailedPrecondition, match="runs on tensors"):
        await matrix.embed(["a"])


async def test_infers(matrix: Engine, tmp_path: Path) -> None:
    x = np.arange(64, dtype=np.float32).reshape(2, 32)
    result: dict[str, Any] = await matrix.infer({"x": x}, [])
    one: dict[str, Any] = await matrix.infer({"x": x[:1]}, ["y"])
    assert result["y"].shape == (2, 8)
    np.testing.assert_allclose(result["y"][:1], one["y"], rtol=1e-5)
    (given,) = matrix.info.inputs
    assert (given.name, given.dtype, list(given.shape)) == ("x", "float32", [-1, 32])


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ({}, [], "'x' is missing"),
        ({"z": np.ones((1, 32), np.float32)}, [], "takes no tensor 'z'"),
        ({"x": np.ones((1, 32), np.float64)}, [], "float64; expected float32"),
        ({"x": np.ones((1, 31), np.float32)}, [], r"\[1, 31\]; expected float32 of shape"),
        ({"x": np.ones(32, np.float32)}, [], r"shape \[32\]"),
        ({"x": np.ones((1, 32), np.float32)}, ["q"], "gives no tensor 'q'"),
    ],
)
async def test_bad_tensors_are_named(
    matrix: Engine, inputs: dict[str, Any], outputs: list[str], says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says) as caught:
        await matrix.infer(inputs, outputs)
    assert caught.value.reason == "BAD_TENSOR"


async def test_values_and_sizes_that_the_model_refuses(encoder: Engine) -> None:
    mask = np.ones((1, 2), np.int64)
    with pytest.raises(InvalidArgument, match="out of data bounds"):
        await encoder.infer({"input_ids": mask * 10**9, "attention_mask": mask}, [])
    with pytest.raises(InvalidArgument, match="3 as its dimension 'sequence'; expected 2"):
        await encoder.infer({"input_ids": mask, "attention_mask": np.ones((1, 3), np.int64)}, [])


def cast_model(path: Path, *kinds: str) -> dict[str, Path]:
    """A model that gives strings back (kind s) and doubles bfloat16 (kind x)."""
    value, cast = helper.make_tensor_value_info, helper.make_node
    parts = {
        "s": (
            [helper.make_node("Identity", ["s"], ["t"])],
            value("s", TensorProto.STRING, ["n"]),
            value("t", TensorProto.STRING, ["n"]),
        ),
        "x": (
            [
                cast("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
                cast("Add", ["f", "f"], ["g"]),
                cast("Cast", ["g"], ["y"], to=TensorProto.BFLOAT16),
            ],
            value("x", TensorProto.BFLOAT16, ["m"]),
            value("y", TensorProto.BFLOAT16, ["m"]),
        ),
    }
    nodes = [node for kind in kinds for node in parts[kind][0]]
    inputs, outputs = [parts[k][1] for k in kinds], [parts[k][2] for k in kinds]
    return {"model.onnx": save_graph(path, nodes, inputs, outputs)}


async def test_strings(tmp_path: Path) -> None:
    engine = engine_onnx.load(spec(cast_model(tmp_path / "m.onnx", "s")))
    assert [i.dtype for i in engine.info.inputs] == ["object"]
    result = await engine.infer({"s": np.array(["ä", ""], object)}, [])
    engine.close()
    assert result["t"].tolist() == ["ä", ""]


async def test_bfloat16(tmp_path: Path) -> None:
    engine = engine_onnx.load(spec(cast_model(tmp_path / "m.onnx", "x")))
    assert [i.dtype for i in engine.info.inputs] == ["bfloat16"]
    x = np.array([1.5, -2.0, np.nan, np.inf], np.float32)
    result: dict[str, Any] = await engine.infer({"x": x}, [])
    engine.close()
    np.testing.assert_array_equal(result["y"], 2 * x)


def test_bfloat16_beside_strings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="cast the latter to float32"):
        engine_onnx.load(spec(cast_model(tmp_path / "m.onnx", "s", "x")))


def test_bfloat16_rounds_to_nearest_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, 3.4e38], np.float32)
    back = bfloat16.decode(bfloat16.encode(values))
    np.testing.assert_array_equal(back, np.array([1.0, 1.0, 1.015625, np.inf], np.float32))


async def test_weights_outside_the_main_file(tmp_path: Path) -> None:
    tiny_onnx(tmp_path / "m.onnx", external="m.onnx.data")
    stored = {}
    for name in ("m.onnx", "m.onnx.data"):  # as in a content-addressed store
        stored[name] = (tmp_path / name).rename(tmp_path / f"{abs(hash(name))}")
    engine = engine_onnx.load(spec(stored))
    result = await engine.infer({"x": np.ones((1, 32), np.float32)}, [])
    engine.close()
    assert result["y"].shape == (1, 8)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\x08\x09" * 40])
def test_a_broken_file_does_not_load(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(Unavailable, match="m@1 cannot be loaded") as caught:
        engine_onnx.load(spec({"model.onnx": path}))
    assert caught.value.reason == "LOAD_FAILED" and "\n" not in caught.value.message


def test_what_it_cannot_run_is_said(tmp_path: Path, encoder_files: dict[str, Path]) -> None:
    tiny = {"model.onnx": tiny_onnx(tmp_path / "m.onnx")}
    no_tokenizer = {"model.onnx": encoder_files["model.onnx"]}
    cases: list[tuple[ModelSpec, type[LLMOSError], str]] = [
        (ModelSpec("m@1", "gguf", "generate", tiny), FailedPrecondition, "NO_ENGINE"),
        (spec(tiny, "embed"), FailedPrecondition, "NO_ENGINE"),
        (spec(no_tokenizer, "embed"), Unavailable, "LOAD_FAILED"),
    ]
    for wrong, error, reason in cases:
        with pytest.raises(error) as caught:
            engine_onnx.load(wrong)
        assert caught.value.reason == reason


def test_estimates_more_than_the_files(encoder_files: dict[str, Path]) -> None:
    size = encoder_files["model.onnx"].stat().st_size
    assert size < engine_onnx.estimate_bytes(spec(encoder_files, "embed")) < size * 2 + (1 << 29)


def test_closing_ends_its_threads(encoder_files: dict[str, Path]) -> None:
    before = set(threading.enumerate())
    engine = engine_onnx.load(spec(encoder_files, "embed"))
    asyncio.run(engine.embed(["a"]))
    assert set(threading.enumerate()) > before
    engine.close()
    assert set(threading.enumerate()) == before


def weighing(path: Path, values: Any, kind: int, *, raw: bool, outside: str = "") -> Path:
    """Write y = cast(w) + x."""
    if raw:
        weight = TensorProto(name="w", data_type=kind, dims=[values.size])
        weight.raw_data = values.tobytes()
    else:
        weight = helper.make_tensor("w", kind, [values.size], values)
    if outside:
        (path.parent / outside).write_bytes(b"before" + weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", outside), ("offset", 6), ("length", values.nbytes)):
            weight.external_data.add(key=key, value=str(value))
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["x", "v"], ["y"]),
        ],
        "weighing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [values.size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [values.size])],
        [helper.make_tensor("first", TensorProto.INT64, [1], [-1]), weight],
    )
    opsets = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    )
    return path


@pytest.mark.parametrize(
    ("kind", "dtype", "raw", "outside"),
    [
        (TensorProto.FLOAT, "<f4", True, ""),
        (TensorProto.FLOAT, "<f4", True, "m.data"),
        (TensorProto.FLOAT, "<f4", False, ""),
        (TensorProto.DOUBLE, "<f8", True, ""),
        (TensorProto.DOUBLE, "<f8", False, ""),
        (TensorProto.FLOAT16, "<f2", True, ""),
        (TensorProto.BFLOAT16, "<u2", True, "m.data"),
    ],
)
def test_weights_that_are_no_numbers_are_named(
    tmp_path: Path, kind: int, dtype: str, raw: bool, outside: str
) -> None:
    if outside and not raw:
        pytest.skip("weights outside the file are raw bytes")
    values = np.linspace(-1, 1, 5).astype("<f4")
    values[1] = -np.inf  # a mask may hold it
    for bad in (False, True):
        values[3] = np.nan if bad else 0.5
        stored = values.view("<u4") >> 16 if dtype == "<u2" else values
        path = weighing(tmp_path / "m.onnx", stored.astype(dtype), kind, raw=raw, outside=outside)
        files = {"m.onnx": path}
        if outside:
            files[outside] = tmp_path / outside
        if bad:
            with pytest.raises(Unavailable, match=r"not a number \(NaN\), in 'w'") as caught:
                engine_onnx.load(spec(files))
            assert caught.value.reason == "LOAD_FAILED"
        else:
            engine_onnx.load(spec(files)).close()


def test_a_torn_file_is_not_read_for_numbers(tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "m.onnx")
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert not_numbers({"m.onnx": path}) in ("", "w")
    path.write_bytes(b"\x80" * (1 << 22))  # a number without end: it would take for ever to add up
    assert not_numbers({"m.onnx": path}) == ""
