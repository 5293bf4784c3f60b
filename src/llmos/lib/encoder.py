"""Text encoders around their network: tokenising, padding, pooling and normalising.

Reads the files that sentence-transformers writes beside the weights: `tokenizer.json` (must be
there), `1_Pooling/config.json`, `sentence_bert_config.json`, `config.json`. Owns no network: the
execution server runs it in ONNX Runtime, the optimizer in torch, and both compare equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from llmos.lib.errors import InvalidArgument

_POOLINGS = ("mean", "cls", "max")
_DEFAULT_LENGTH = 512  # of BERT; for models that do not say


@dataclass(frozen=True)
class Encoded:
    """One text as token ids; cut: it was longer than the encoder takes."""

    ids: Sequence[int]
    types: Sequence[int]
    cut: bool


class TextEncoder:
    """Tokeniser and pooling of one text encoder. Safe to use from several threads."""

    def __init__(self, files: Mapping[str, Path], limit: int = 0) -> None:
        """Read the files, given by name within the version; limit: longest input, 0 = theirs.

        Raises InvalidArgument BAD_MODEL_FILE naming the file.
        """
        if "tokenizer.json" not in files:
            raise InvalidArgument(
                "BAD_MODEL_FILE",
                "There is no tokenizer.json beside the model; import it together with the model.",
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(files["tokenizer.json"]))
        except Exception as exc:  # the library raises nothing more precise
            raise InvalidArgument(
                "BAD_MODEL_FILE", f"tokenizer.json is not a tokenizer file: {exc}."
            ) from exc
        config = _json(files, "config.json")
        lengths = [
            limit,
            _number(_json(files, "sentence_bert_config.json"), "max_seq_length"),
            _number(config, "max_position_embeddings"),
        ]
        self.max_length = min((n for n in lengths if n > 0), default=_DEFAULT_LENGTH)
        self.pad_id = _number(config, "pad_token_id")
        self.pooling = _pooling(_json(files, "1_Pooling/config.json"))
        # A tokenizer file carries the padding and truncation of whoever saved it; they are ours.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_length)

    def encode(self, text: str) -> Encoded:
        """Return the ids of a text with the model's special tokens, cut to `max_length`."""
        encoding = self._tokenizer.encode(text)
        return Encoded(encoding.ids, encoding.type_ids, bool(encoding.overflowing))

    def tokens(self, text: str) -> tuple[list[int], list[str]]:
        """Return ids and texts of a text's tokens, as `encode`."""
        encoding = self._tokenizer.encode(text)
        return list(encoding.ids), list(encoding.tokens)

    def batch(self, encoded: Sequence[Encoded]) -> dict[str, npt.NDArray[np.int64]]:
        """Return input_ids, attention_mask and token_type_ids, int64 [texts, longest]."""
        shape = (len(encoded), max(len(e.ids) for e in encoded))
        ids = np.full(shape, self.pad_id, np.int64)
        mask = np.zeros(shape, np.int64)
        types = np.zeros(shape, np.int64)
        for row, one in enumerate(encoded):
            ids[row, : len(one.ids)] = one.ids
            mask[row, : len(one.ids)] = 1
            types[row, : len(one.ids)] = one.types
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}

    def pool(
        self, hidden: npt.NDArray[Any], mask: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Turn token vectors [texts, length, dim] into normalised text vectors [texts, dim]."""
        values = hidden.astype(np.float32, copy=False)
        if self.pooling == "cls":
            return normalise(values[:, 0])
        weights = mask[..., None].astype(np.float32)
        if self.pooling == "max":
            return normalise(np.where(weights > 0, values, -np.inf).max(axis=1))
        return normalise((values * weights).sum(axis=1) / weights.sum(axis=1))


def normalise(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the vectors [n, dim] with length 1; a zero vector stays zero."""
    values = vectors.astype(np.float32, copy=False)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    result: npt.NDArray[np.float32] = values / np.maximum(norms, np.float32(1e-12))
    return result


def _json(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        value = json.loads(files[name].read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise InvalidArgument("BAD_MODEL_FILE", f"{name} is not valid JSON: {exc}.") from exc
    if not isinstance(value, dict):
        raise InvalidArgument("BAD_MODEL_FILE", f"{name} is not a JSON object.")
    return value


def _number(table: Mapping[str, Any], key: str) -> int:
    value = table.get(key)
    return value if isinstance(value, int) else 0


def _pooling(table: Mapping[str, Any]) -> str:
    names = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
    prefix = "pooling_mode_"
    chosen = [
        k.removeprefix(prefix) for k, v in table.items() if k.startswith(prefix) and v is True
    ]
    if isinstance(table.get("pooling_mode"), str):
        chosen = [table["pooling_mode"]]
    if not chosen:
        return "mean"
    mode = names.get(chosen[0], chosen[0])
    if len(chosen) > 1 or mode not in _POOLINGS:
        raise InvalidArgument(
            "BAD_MODEL_FILE",
            f"1_Pooling/config.json asks for {' and '.join(chosen)}; one of mean, cls and max "
            "pooling can be done.",
        )
    return mode
