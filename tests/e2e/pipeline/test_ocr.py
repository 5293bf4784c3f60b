"""Reading text in an image: three models, each in a worker of its own, joined by a pipeline."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from execution_stack import Client, Stack, client, stack

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
