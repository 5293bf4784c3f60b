"""The readers of headers on mutated real files: an error of ours, in bounded time, or a result."""

from __future__ import annotations

import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import tiny_gguf, tiny_onnx, tiny_safetensors
from torch_files import tiny_checkpoint, tiny_export, tiny_script

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.formats.describe import describe

EXAMPLES = int(os.environ.get("LLMOS_FUZZ_EXAMPLES", "60"))
MAKERS: dict[str, Callable[[Path], Path]] = {
    "gguf": tiny_gguf,
    "safetensors": tiny_safetensors,
    "onnx": tiny_onnx,
    "TorchScript": tiny_script,
    "torch.export": tiny_export,
    "torch.save": tiny_checkpoint,
}
SPOTS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["set", "cut", "insert", "copy", "huge"]),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    return {kind: make(folder / "file").read_bytes() for kind, make in MAKERS.items()}


def mutated(data: bytes, spots: list[tuple[float, str, int]]) -> bytes:
    out = bytearray(data)
    for where, how, byte in spots:
        # Headers are at the beginning, and for zip files at the end.
        at = int(where * len(out))
        if how == "set" and out:
            out[at] = byte
        elif how == "cut":
            del out[at : at + byte]
        elif how == "insert":
            out[at:at] = bytes([byte]) * (byte % 17)
        elif how == "copy":
            out[at:at] = out[max(at - byte, 0) : at]
        elif how == "huge":
            out[at : at + 8] = b"\xff" * 7 + bytes([byte])
    return bytes(out)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_nothing_but_our_errors_comes_out(kind: str, originals: dict[str, bytes]) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
        database=None,
    )
    @given(SPOTS)
    def run(spots: list[tuple[float, str, int]]) -> None:
        path.write_bytes(mutated(originals[kind], spots))
        began = time.process_time()
        try:
            describe({"file": path})
        except InvalidArgument as exc:
            assert exc.reason in ("BAD_MODEL_FILE", "PICKLE_REFUSED")
            assert len(exc.message) < 600
        assert time.process_time() - began < 5  # of a few milliseconds: no lengths are believed

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(originals[kind])
        if kind != "torch.save":
            describe({"file": path})  # imports what it needs, outside of the measurement
        tracemalloc.start()
        try:
            run()
            assert tracemalloc.get_traced_memory()[1] < 256 << 20
        finally:
            tracemalloc.stop()
