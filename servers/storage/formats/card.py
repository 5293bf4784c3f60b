"""What stands beside the weights: config.json, tokenizer, pooling, the model card's licence."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.servers.storage.formats import tokenizer
from llmos.servers.storage.formats.kinds import bad_file
from llmos.servers.storage.model import Task

_MAX_JSON = 4 << 20  # larger ones are vocabularies, which their users parse
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_ENCODERS = {"bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "albert", "electra"}
_ENCODERS |= {"camembert", "deberta", "deberta-v2", "modernbert", "nomic_bert", "xmod", "ernie"}
_SPDX = {
    "apache-2.0": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "gpl-3.0": "GPL-3.0-only",
    "agpl-3.0": "AGPL-3.0-only",
    "lgpl-3.0": "LGPL-3.0-only",
    "mpl-2.0": "MPL-2.0",
    "cc0-1.0": "CC0-1.0",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "unlicense": "Unlicense",
}


def spdx(license: str) -> str:
    """Return the SPDX identifier for a hub's or package's name of a licence; unknown ones as is."""
    text = license.strip().strip("'\"")
    if len(text) > 64 or "\n" in text:
        return ""  # the text of the licence itself
    return _SPDX.get(text.lower(), text)


@dataclass(frozen=True)
class Card:
    """What the files beside the weights say."""

    architecture: str = ""
    task: Task = Task.UNSPECIFIED
    context_length: int = 0
    license: str = ""
    tokenizer: bool = False
    tokenizer_kind: str = ""
    chat_template: str = ""


def read(files: Mapping[str, Path]) -> Card:
    """Read the files beside the weights. Raises BAD_MODEL_FILE when one is not what it must be."""
    parsed = {name: _json(name, path) for name, path in files.items() if name.endswith(".json")}
    config = _object(parsed, "config.json")
    classes = config.get("architectures")
    names = [c for c in classes if isinstance(c, str)] if isinstance(classes, list) else []
    model_type = config.get("model_type", "")
    architecture = model_type[:64] if isinstance(model_type, str) else ""
    lengths = [_positive(config.get(key)) for key in _CONTEXT_KEYS]
    sentence = _positive(_object(parsed, "sentence_bert_config.json").get("max_seq_length"))
    if "tokenizer.json" in files and _first_byte(files["tokenizer.json"]) != b"{":
        raise bad_file("tokenizer.json", "not a tokenizer of the tokenizers library; export again")
    return Card(
        architecture=architecture,
        task=_task(names, architecture, parsed),
        context_length=min([n for n in (max(lengths), sentence) if n] or [0]),
        license=_license(files.get("README.md")),
        tokenizer="tokenizer.json" in files,
        tokenizer_kind=tokenizer.kind(files),
        chat_template=tokenizer.template(files, parsed),
    )


def _task(classes: list[str], architecture: str, parsed: Mapping[str, Any]) -> Task:
    if any(name.endswith(_CAUSAL) for name in classes):
        return Task.GENERATE
    if any(name == "modules.json" or name.endswith("_Pooling/config.json") for name in parsed):
        return Task.EMBED
    if architecture not in _ENCODERS:
        return Task.UNSPECIFIED
    heads = [n for n in classes if "For" in n and not n.endswith(("ForMaskedLM", "ForPreTraining"))]
    return Task.UNSPECIFIED if heads else Task.EMBED


def _json(name: str, path: Path) -> Any:
    if path.stat().st_size > _MAX_JSON:
        return None
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as exc:
        raise bad_file(name, f"not valid JSON ({str(exc)[:80]}); download it again") from exc


def _object(parsed: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = parsed.get(name, {})
    if not isinstance(value, dict):
        raise bad_file(name, "not a JSON object; download it again")
    return value


def _positive(value: object) -> int:
    number = isinstance(value, int) and not isinstance(value, bool)
    return value if number and isinstance(value, int) and 0 < value < 1 << 31 else 0


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64).lstrip()[:1]


def _license(readme: Path | None) -> str:
    """Return the licence in a model card's front matter (between two `---` lines)."""
    if readme is None:
        return ""
    with readme.open("rb") as file:
        text = file.read(1 << 16).decode("utf-8", "replace")
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:[ \t]*(\S[^\n]*)$", front[1], re.MULTILINE) if front else None
    return spdx(found[1]) if found else ""
