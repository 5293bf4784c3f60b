"""safetensors: the library checks header, offsets and length; here its tensors are counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from llmos.servers.storage.extras import need
from llmos.servers.storage.formats.kinds import bad_file, truncated

# Integers wider than these are indices and masks (position_ids), not parameters.
_PARAMETERS = ("F", "BF", "I8", "U8", "I4", "U4", "E")
_BITS = {"BOOL": 8, "BF16": 16}


@dataclass
class Weights:
    """What the tensors of one model hold, over all its files."""

    parameters: int = 0
    bits: Counter[str] = field(default_factory=Counter)
    tensors: set[str] = field(default_factory=set)

    @property
    def dtype(self) -> str:
        """Return the type that most bytes have, e.g. `F32`."""
        return self.bits.most_common(1)[0][0] if self.bits else ""


def read(name: str, path: Path, weights: Weights) -> None:
    """Check a file and add its tensors to `weights`. Raises BAD_MODEL_FILE."""
    library = need("safetensors")
    size = path.stat().st_size
    with path.open("rb") as file:
        end = 8 + int.from_bytes(file.read(8), "little")
    if size < 9 or end > size:
        raise truncated(name, max(end, 9), size)
    try:
        with library.safe_open(path, framework="numpy") as tensors:
            for tensor in tensors.keys():
                part = tensors.get_slice(tensor)
                _add(weights, tensor, str(part.get_dtype()), part.get_shape())
    except library.SafetensorError as exc:
        fault = str(exc).removeprefix("Error while deserializing header: ")
        if "not fully covered" in fault:
            fault = "truncated, or longer than its tensors"
        raise bad_file(name, f"damaged safetensors: {fault}; download or export it again") from exc
    if not weights.tensors:
        raise bad_file(name, "no tensors inside")


def _add(weights: Weights, tensor: str, dtype: str, shape: list[int]) -> None:
    weights.tensors.add(tensor)
    if not dtype.startswith(_PARAMETERS):
        return
    count = 1
    for dim in shape:
        count *= dim
    weights.parameters += count
    digits = dtype.partition("_")[0].strip("BFUI")
    weights.bits[dtype] += count * _BITS.get(dtype, int(digits) if digits.isdigit() else 8)
