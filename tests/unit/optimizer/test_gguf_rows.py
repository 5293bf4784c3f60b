"""The order of rows in GGUF and back."""

from __future__ import annotations

import numpy as np

from llmos.servers.optimizer.job.models import gguf_names


def test_rows_there_and_back() -> None:
    rows = np.arange(2 * 8 * 3, dtype=np.float32).reshape(16, 3)
    there = gguf_names.paired(rows, 2)
    assert there[:4, 0].tolist() == [0, 12, 3, 15]  # rows 0, 4, 1, 5: halves of a head alternate
    assert (gguf_names.halves(there, 2) == rows).all()


def test_names() -> None:
    assert gguf_names.torch_name("blk.3.attn_q.weight") == "model.layers.3.self_attn.q_proj"
    assert gguf_names.torch_name("token_embd.weight") == "model.embed_tokens"
    assert gguf_names.torch_name("rope_freqs.weight") == ""
