"""What a language model, or a model that turns texts into texts, answers, by torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from llmos.lib.errors import FailedPrecondition
from llmos.servers.optimizer.job.models import networks
from llmos.servers.optimizer.job.models.subject import Subject

_BATCH = 16


def generate(
    subject: Subject, texts: Sequence[str], limit: int, threads: int, beams: int = 1
) -> list[str]:
    """Return at most `limit` tokens for each text, as text: the likeliest of `beams`.

    Raises FailedPrecondition WRONG_FORMAT for models that torch cannot continue texts with.
    """
    import torch

    if subject.format not in ("safetensors", "gguf") or subject.task not in (
        "generate",
        "translate",
    ):
        raise FailedPrecondition(
            "WRONG_FORMAT",
            f"{subject.ref} is a {subject.format} model; only safetensors and GGUF models answer "
            "texts here.",
        )
    torch.set_num_threads(threads)
    model: Any = networks.module(subject).model
    tokenizer = Tokenizer.from_file(str(subject.files["tokenizer.json"]))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pad = model.config.pad_token_id or 0
    # A model that continues needs its last token last: padding goes before.
    left = subject.task == "generate"
    # Nothing has a place after the last position: long texts lose their end (or, where the model
    # continues them, their beginning), as in training.
    most = int(model.config.max_position_embeddings)
    limit = min(limit, most - 1)
    kept_ids = slice(-max(1, most - limit), None) if left else slice(0, most)
    found: list[str] = []
    for start in range(0, len(texts), _BATCH):
        rows = [
            e.ids[kept_ids] for e in tokenizer.encode_batch(list(texts[start : start + _BATCH]))
        ]
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), pad)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            where = slice(longest - len(row), None) if left else slice(0, len(row))
            ids[index, where], mask[index, where] = torch.tensor(row), 1
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=limit,
                do_sample=False,
                num_beams=beams,
                pad_token_id=pad,
            )
        kept = out[:, longest:] if left else out
        found += [text.strip() for text in tokenizer.decode_batch(kept.tolist())]
    return found
