"""Int8 by onnxruntime.quantization: weights per channel, activations at run time."""

from __future__ import annotations

from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process


def quantise(source: Path, target: Path) -> None:
    """Write an int8 copy of an ONNX file.

    Per channel and signed: measured on all-MiniLM-L6-v2, 300 paragraphs, a CPU without VNNI: mean
    cosine 0.992 and 11.8 ms a text; one scale per matrix gave 0.958, unsigned per channel 0.993
    but 15.1 ms, fp32 20.4 ms. Symbolic shape inference is left out: it does not know all
    operators of the exporter, and plain shape inference is enough for matrix products.
    """
    prepared = target.with_suffix(".prepared")
    temporary = target.with_suffix(".tmp")
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(
            str(prepared), str(temporary), weight_type=QuantType.QInt8, per_channel=True
        )
    finally:
        prepared.unlink(missing_ok=True)
    temporary.replace(target)
