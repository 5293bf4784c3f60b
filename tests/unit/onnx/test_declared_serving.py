"""What a version's serving.toml declares around an ONNX model: batches, state, cache, streams."""

from __future__ import annotations

import asyncio
import importlib.metadata
import io
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from model_files import tiny_onnx
from onnx import TensorProto, helper
from tiny_text import save_graph, text_files

from llmos.lib.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from llmos.servers.execution.engine import onnx as engine_onnx
from llmos.servers.execution.engine.base import Engine, ModelSpec, Prediction, SequenceCall

BATCHES = "[batching]\nmax = 16\ndelay_ms = 60\npreferred = [8]\n"
VAD = """
[constants]
sr = 16000
[sequence]
carry = { input = 64 }
idle_s = 30
max = 4
[[sequence.state]]
input = "state"
output = "stateN"
shape = [2, 128]
axis = 1
"""


def load(path: Path, toml: str, task: str = "predict", **files: Path) -> Engine:
    declared = path.parent / "serving.toml"
    declared.write_text(toml)
    named = {"model.onnx": path, "serving.toml": declared} | files
    return engine_onnx.load(ModelSpec("m@1", "onnx", task, named, threads=1))


@pytest.fixture
def matrix(tmp_path: Path) -> Iterator[Engine]:
    engine = load(tiny_onnx(tmp_path / "m.onnx"), BATCHES)
    yield engine
    engine.close()


def silero(name: str = "silero_vad.onnx") -> Path:
    try:
        distribution = importlib.metadata.distribution("silero-vad")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("silero-vad is not installed (models.txt)")
    return Path(str(distribution.locate_file(f"silero_vad/data/{name}")))


@pytest.fixture(scope="module")
def speech() -> Any:
    """Noise that comes and goes at 16,000 samples a second: what matters here is the arithmetic."""
    random = np.random.default_rng(5)
    return (random.normal(0, 0.1, 512 * 12) * np.sin(np.arange(512 * 12) / 700)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(speech: Any) -> Any:
    """Return the probabilities as the network's own authors compute them."""
    session = ort.InferenceSession(str(silero()), providers=["CPUExecutionProvider"])
    state, context, found = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32), []
    for at in range(0, len(speech), 512):
        piece = np.concatenate([context, speech[None, at : at + 512]], axis=1)
        feeds = {"input": piece, "state": state, "sr": np.array(16000, np.int64)}
        output, state = session.run(None, feeds)
        context = piece[:, -64:]
        found.append(float(output[0, 0]))
    return found


async def test_requests_run_together_and_answers_are_their_own(matrix: Engine) -> None:
    random = np.random.default_rng(0)
    given = [random.standard_normal((1 + i % 3, 32), np.float32) for i in range(24)]
    alone = [(await matrix.infer({"x": x}, []))["y"] for x in given[:2]]
    before = matrix.statistics.executions if matrix.statistics else 0
    answers = await asyncio.gather(*(matrix.infer({"x": x}, []) for x in given))
    statistics = matrix.statistics
    assert statistics is not None
    assert [a["y"].shape[0] for a in answers] == [len(x) for x in given]
    pairs: list[Any] = list(zip(answers, alone, strict=False))
    for answer, one in pairs:
        np.testing.assert_allclose(answer["y"], one, atol=1e-6)
    runs = statistics.executions - before
    assert runs < 8  # 48 rows in batches of at most 16
    assert max(statistics.batches) > 4 and max(statistics.batches) <= 16
    assert statistics.durations["success"].count == 26 and statistics.durations["queue"].count >= 26


async def test_one_bad_request_in_a_batch_harms_no_neighbour(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["rows"])]
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])
    out = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 2])
    table = helper.make_tensor("table", TensorProto.FLOAT, [6, 2], rows.reshape(-1))
    path = save_graph(tmp_path / "g.onnx", nodes, [ids], [out], [table])
    engine = load(path, "[batching]\nmax = 8\ndelay_ms = 50")
    values = [1, 5, 99, 0]
    calls = [engine.infer({"ids": np.array([v])}, []) for v in values]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    engine.close()
    for value, answer in zip(values, answers, strict=True):
        if value == 99:
            assert isinstance(answer, InvalidArgument) and answer.reason == "BAD_TENSOR"
        else:
            assert isinstance(answer, dict)
            np.testing.assert_array_equal(answer["rows"], rows[[value]])


async def test_limits_of_a_batch_and_of_the_queue(tmp_path: Path) -> None:
    toml = "[batching]\nmax = 4\nqueue = 4\ndelay_ms = 200"
    engine = load(tiny_onnx(tmp_path / "m.onnx"), toml)
    with pytest.raises(InvalidArgument) as caught:
        await engine.infer({"x": np.ones((5, 32), np.float32)}, [])
    assert caught.value.reason == "BATCH_TOO_LARGE" and "takes 4 at once" in caught.value.message
    calls = [engine.infer({"x": np.ones((3, 32), np.float32)}, []) for _ in range(4)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    full = [a for a in answers if isinstance(a, ResourceExhausted)]
    assert full and all(e.reason == "QUEUE_FULL" and e.retry_after_s for e in full)
    assert any(isinstance(a, dict) for a in answers)
    engine.close()


async def test_padded_inputs_give_what_they_give_alone(tmp_path: Path) -> None:
    """Sums over a masked sequence: filled-up places must neither count nor come back."""
    nodes = [
        helper.make_node("Mul", ["a", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["sum"], keepdims=0),
    ]
    free = ["batch", "sequence"]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, free) for n in ("a", "mask")]
    outputs = [
        helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("kept", TensorProto.FLOAT, free),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    path = save_graph(tmp_path / "g.onnx", nodes, inputs, outputs, [axis])
    toml = "[batching]\nmax = 16\ndelay_ms = 50\nwaste = 0.5\npad = { a = 7, mask = 0 }"
    engine = load(path, toml)
    lengths = [3, 4, 5, 3, 20, 4]
    given = [np.full((1, n), n, np.float32) for n in lengths]
    calls = [engine.infer({"a": g, "mask": np.ones_like(g)}, []) for g in given]
    for length, answer in zip(lengths, await asyncio.gather(*calls), strict=True):
        assert answer["sum"].tolist() == [length * length]
        np.testing.assert_array_equal(answer["kept"], np.full((1, length), length))
    assert engine.statistics is not None and max(engine.statistics.batches) > 1
    engine.close()


async def test_cancelled_requests_leave_the_queue(matrix: Engine) -> None:
    calls = [
        asyncio.ensure_future(matrix.infer({"x": np.ones((1, 32), np.float32)}, []))
        for _ in range(4)
    ]
    await asyncio.sleep(0.01)
    for call in calls[1:]:
        call.cancel()
    answer = await calls[0]
    assert answer["y"].shape == (1, 8)
    assert all(
        isinstance(r, asyncio.CancelledError)
        for r in await asyncio.gather(*calls[1:], return_exceptions=True)
    )


async def test_state_goes_on_from_call_to_call(speech: Any, expected: Any, tmp_path: Path) -> None:
    engine = load_vad(tmp_path, VAD + BATCHES)
    assert [i.name for i in engine.info.inputs] == ["input"]
    assert [o.name for o in engine.info.outputs] == ["output"]

    async def listen(id: int, tenant: str) -> list[float]:
        found = []
        for at in range(0, len(speech), 512):
            call = SequenceCall(id, start=not at, end=at + 512 == len(speech))
            piece = {"input": speech[None, at : at + 512]}
            answer = await engine.predict(Prediction(piece, sequence=call, tenant=tenant))
            found.append(float(answer["output"][0, 0]))
        return found

    # Four at once, two of them with the same id, of different tenants: batched, never mixed.
    for found in await asyncio.gather(*(listen(1 + i % 2, f"t{i // 2}") for i in range(4))):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert engine.statistics is not None and max(engine.statistics.batches) > 1
    with pytest.raises(FailedPrecondition) as caught:  # it has ended
        again = Prediction({"input": speech[None, :512]}, sequence=SequenceCall(1), tenant="t0")
        await engine.predict(again)
    assert caught.value.reason == "NO_SUCH_SEQUENCE"
    for id in range(4):
        first = SequenceCall(10 + id, start=True)
        await engine.predict(Prediction({"input": speech[None, :512]}, sequence=first))
    with pytest.raises(ResourceExhausted) as crowded:
        first = SequenceCall(20, start=True)
        await engine.predict(Prediction({"input": speech[None, :512]}, sequence=first))
    assert crowded.value.reason == "TOO_MANY_SEQUENCES"
    engine.close()


def load_vad(folder: Path, toml: str) -> Engine:
    path = folder / "vad.onnx"
    path.symlink_to(silero())
    return load(path, toml)


async def test_a_failed_call_leaves_the_state_as_it_was(
    speech: Any, expected: Any, tmp_path: Path
) -> None:
    engine = load_vad(tmp_path, VAD)
    found = []
    for at in range(0, 512 * 4, 512):
        call = SequenceCall(1, start=not at)
        if at == 1024:
            with pytest.raises(InvalidArgument):
                bad = {"input": np.ones((1, 3, 512), np.float32)}
                await engine.predict(Prediction(bad, sequence=call))
        answer = await engine.predict(
            Prediction({"input": speech[None, at : at + 512]}, sequence=call)
        )
        found.append(float(answer["output"][0, 0]))
    engine.close()
    np.testing.assert_allclose(found, expected[:4], atol=1e-5)


async def test_one_long_request_is_answered_piece_by_piece(
    speech: Any, expected: Any, tmp_path: Path
) -> None:
    engine = load_vad(tmp_path, VAD + '[stream]\ninput = "input"\nchunk = 512\n')
    request = Prediction({"input": speech[None]})
    found = [float(a["output"][0, 0]) async for a in engine.predict_stream(request)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(Unimplemented) as caught:
        await engine.predict(request)
    assert caught.value.reason == "DECOUPLED"
    with pytest.raises(InvalidArgument, match="multiple of 512"):
        async for _ in engine.predict_stream(Prediction({"input": speech[None, :100]})):
            pass
    engine.close()


async def test_a_sound_file_goes_in(speech: Any, expected: Any, tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    step = '[[before]]\nstep = "audio"\nrate = 16000\nmultiple = 512\n'
    engine = load_vad(tmp_path, VAD + '[stream]\ninput = "input"\nchunk = 512\n' + step)
    assert [i.name for i in engine.info.inputs] == ["audio"]
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes((speech * 32767).round().astype("<i2").tobytes())
    array = np.empty(1, object)
    array[0] = file.getvalue()
    found = [a["output"].item() async for a in engine.predict_stream(Prediction({"audio": array}))]
    np.testing.assert_allclose(found, expected, atol=2e-3)  # 16-bit samples
    array[0] = b"no sound"
    with pytest.raises(InvalidArgument) as caught:
        async for _ in engine.predict_stream(Prediction({"audio": array})):
            pass
    assert caught.value.reason == "BAD_INPUT"
    engine.close()


async def test_answers_are_kept_for_each_tenant(tmp_path: Path) -> None:
    engine = load(tiny_onnx(tmp_path / "m.onnx"), "[cache]\nmb = 1\nttl_s = 60")
    statistics = engine.statistics
    assert statistics is not None
    x = np.ones((1, 32), np.float32)
    first = await engine.predict(Prediction({"x": x}, tenant="a"))
    runs = statistics.executions
    again = await engine.predict(Prediction({"x": x}, tenant="a"))
    np.testing.assert_array_equal(first["y"], again["y"])
    assert statistics.executions == runs
    await engine.predict(Prediction({"x": x}, tenant="b"))
    await engine.predict(Prediction({"x": x * 2}, tenant="a"))
    assert statistics.executions == runs + 2
    assert statistics.durations["cache_hit"].count == 1
    assert statistics.durations["cache_miss"].count == 3
    engine.close()


def classifier(folder: Path, config: dict[str, object] | None = None) -> dict[str, Path]:
    """Write a text classifier whose score of a class is how often a letter is in the text."""
    files = text_files(folder)
    import json

    known = json.loads(files["tokenizer.json"].read_text())["model"]["vocab"]
    table = np.zeros((len(known), 3), np.float32)
    for column, letters in enumerate(("a", "b", "c")):
        table[known[letters], column] = table[known[f"##{letters}"], column] = 1
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "first"], ["logits"], keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "sequence"])
        for n in ("input_ids", "attention_mask")
    ]
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    tensors = [
        helper.make_tensor("table", TensorProto.FLOAT, table.shape, table.reshape(-1)),
        helper.make_tensor("last", TensorProto.INT64, [1], [2]),
        helper.make_tensor("first", TensorProto.INT64, [1], [1]),
    ]
    files["model.onnx"] = save_graph(folder / "model.onnx", nodes, inputs, [out], tensors)
    if config is not None:
        files["config.json"].write_text(json.dumps(config))
    return {"model.onnx": files.pop("model.onnx"), **files}


async def test_texts_are_classified_without_a_declaration(tmp_path: Path) -> None:
    names = {"0": "many a", "1": "many b", "2": "many c"}
    config: dict[str, object] = {
        "architectures": ["BertForSequenceClassification"],
        "id2label": names,
    }
    files = classifier(tmp_path, config)
    engine = engine_onnx.load(ModelSpec("m@1", "onnx", "embed", files, threads=1))
    found = await engine.classify(["aab", "bbbbbbc", "cc a ccc"])
    assert [found.names[i] for i in found.scores.argmax(axis=1)] == list(names.values())
    np.testing.assert_allclose(found.scores.sum(axis=1), 1, atol=1e-6)
    assert engine.info.task == "predict"
    texts = np.array(["aab", "bb"], object)
    answer = await engine.infer({"text": texts}, [])
    assert answer["label"].tolist() == [["many a"], ["many b"]]
    assert sorted(answer) == ["label", "score", "scores"]
    alone = await engine.classify(["bbbbbbc"])  # as in the batch, whatever its neighbours
    np.testing.assert_allclose(alone.scores[0], found.scores[1], atol=1e-6)
    wrongs: list[Any] = [["a", ""], [b"\xff\xfe"]]
    for wrong in wrongs:
        with pytest.raises(InvalidArgument) as caught:
            await engine.classify(wrong)
        assert caught.value.reason == "BAD_INPUT"
    engine.close()


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[batching", "not a TOML file"),
        ("[bathing]\nmax = 3", "'bathing' is not known"),
        ("[batching]\nmaximum = 3", "batching.maximum is not known"),
        ('[batching]\nmax = "3"', "batching.max has the wrong type"),
        ("[batching]\nmax = 0", "batching.max must be"),
        ("[batching]\npreferred = [64]", "batching.preferred"),
        ("[stream]\nchunk = 3", "stream.input is missing"),
        ("version = 2", "version is not 1"),
        ('[[before]]\nstep = "dance"', "step 'dance' is not known"),
        ('[[after]]\nstep = "softmax"', "input is missing"),
        ('[[after]]\nstep = "softmax"\ninput = "q"', "takes 'q'"),
        ('[[after]]\nstep = "softmax"\ninput = "y"\nwarm = 1', "'warm' is not known"),
        ("[constants]\nq = 1", "constants.q is no input"),
        ('[[before]]\nstep = "tokenize"', "no tokenizer.json"),
    ],
)
def test_wrong_declarations_are_named(tmp_path: Path, toml: str, says: str) -> None:
    with pytest.raises(Unavailable, match=says) as caught:
        load(tiny_onnx(tmp_path / "m.onnx"), toml)
    assert caught.value.reason == "LOAD_FAILED" and "serving.toml" in caught.value.message


async def test_a_model_without_state_takes_no_sequence(matrix: Engine) -> None:
    with pytest.raises(InvalidArgument) as caught:
        x = {"x": np.ones((1, 32), np.float32)}
        await matrix.predict(Prediction(x, sequence=SequenceCall(1, start=True)))
    assert caught.value.reason == "NO_SEQUENCES"


async def test_a_batch_that_outputs_do_not_follow_is_told(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])
    engine = load(save_graph(tmp_path / "g.onnx", nodes, [x], [y]), BATCHES)
    calls = [engine.infer({"x": np.ones((1, 2), np.float32)}, []) for _ in range(3)]
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        assert getattr(answer, "reason", "") == "BAD_BATCHING"
    engine.close()
