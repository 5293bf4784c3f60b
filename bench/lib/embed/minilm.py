"""all-MiniLM-L6-v2 in torch, fp32, one thread: what every peer of bench/embed.py serves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel


class MiniLM:
    """The encoder as its model card runs it: padded batches, mean pooling, normalised."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        folder = Path(os.environ["MINILM"])
        self._model = AutoModel.from_pretrained(folder, local_files_only=True).float().eval()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(256)

    def embed(self, texts: Sequence[str]) -> Any:
        """Return float32 [texts, 384]."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = torch.tensor([e.ids for e in encoded])
        mask = torch.tensor([e.attention_mask for e in encoded])
        with torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].float()
        mean = (hidden * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(mean, dim=1).numpy().astype(np.float32)
