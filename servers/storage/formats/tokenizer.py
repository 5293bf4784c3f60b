"""Which tokenizer and chat template stand beside the weights; read without a tokenizer library."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_TEMPLATE = 256 << 10  # characters; the longest known have a tenth
_MODEL = re.compile(rb'"model"\s*:\s*\{\s*"type"\s*:\s*"(\w{1,32})"')
_ELSE = {"tokenizer.model": "SentencePiece", "spiece.model": "SentencePiece"} | {
    "sentencepiece.bpe.model": "SentencePiece",
    "vocab.txt": "WordPiece",
    "merges.txt": "BPE",
}


def kind(files: Mapping[str, Path]) -> str:
    """Return the algorithm, e.g. `BPE`, `WordPiece`, `Unigram`; "" = none, or not known."""
    if path := files.get("tokenizer.json"):
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            if found := _MODEL.search(data):
                return found[1].decode("ascii", "replace")
    return next((said for name, said in _ELSE.items() if name in files), "")


def template(files: Mapping[str, Path], parsed: Mapping[str, Any]) -> str:
    """Return the chat template (Jinja), "" = none. parsed: the JSON files that were read."""
    if path := files.get("chat_template.jinja"):
        with path.open("rb") as file:
            return bounded(file.read(4 * MAX_TEMPLATE + 1).decode("utf-8", "replace"))
    for name in ("chat_template.json", "tokenizer_config.json"):
        said = parsed.get(name)
        found = said.get("chat_template") if isinstance(said, dict) else None
        if isinstance(found, list):  # several; the one called `default` serves
            named = [t for t in found if isinstance(t, dict)]
            chosen = [t for t in named if t.get("name") == "default"] or named
            found = chosen[0].get("template") if chosen else None
        if isinstance(found, str):
            return bounded(found)
    return ""


def bounded(text: str) -> str:
    """Return a template that is not absurdly long, else ""."""
    return text if len(text) <= MAX_TEMPLATE else ""
