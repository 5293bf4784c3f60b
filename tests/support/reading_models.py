"""Models that read: text in images (three real models and a pipeline), and beeps in sounds."""

from __future__ import annotations

import importlib.metadata
import io
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

cv2 = pytest.importorskip("cv2")
EXAMPLE = Path(__file__).parents[2] / "examples" / "ocr"
PARTS = {
    "detect": "PP-OCRv6_det_small.onnx",
    "direction": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "read": "PP-OCRv6_rec_small.onnx",
}
LINES = ["Operating systems", "for models: 2026", "ONE pipeline"]


def ocr_sources(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (what to import, its name) of all that `ocr` needs, itself the last; or skip."""
    try:
        package = importlib.metadata.distribution("rapidocr")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("rapidocr is not installed (models.txt)")
    for part, file in PARTS.items():
        (folder / part).mkdir(parents=True)
        source = package.locate_file(f"rapidocr/models/{file}")
        shutil.copy(str(source), folder / part / "model.onnx")
        shutil.copy(EXAMPLE / part / "serving.toml", folder / part)
        yield str(folder / part), f"ocr-{part}"
    yield str(EXAMPLE / "pipeline.toml"), "ocr"


def page(upside_down: bool = False) -> Any:
    """An image of LINES."""
    image = np.full((360, 640, 3), 255, np.uint8)
    for row, line in enumerate(LINES):
        place = (30, 80 + 100 * row)
        cv2.putText(image, line, place, cv2.FONT_HERSHEY_SIMPLEX, 1.5, (20, 20, 20), 3, cv2.LINE_AA)
    return np.ascontiguousarray(image[::-1, ::-1]) if upside_down else image


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
