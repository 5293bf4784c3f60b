"""All of a version's files but its weights: shapes, tokenizer, chat template."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.torch import known
from llmos.servers.execution.engine.torch import tokenizer as tokenizers
from llmos.servers.execution.engine.torch.chat import ChatTemplate
from llmos.servers.execution.engine.torch.config import (
    LlamaConfig,
    main_file,
    read_config,
    read_json,
)
from llmos.servers.execution.engine.torch.gguf_header import GgufHeader, damaged
from llmos.servers.execution.engine.torch.tokenizer import TextTokenizer, token_text


@dataclass(frozen=True)
class Reading:
    """What was read. header: of GGUF files, without arrays; template: the chat's, as the files say.

    The template is foreign code: it is compiled where it is used, and not by who only keeps this.
    """

    config: LlamaConfig
    header: GgufHeader | None
    text: TextTokenizer
    template: object
    eos: str

    def chat(self) -> ChatTemplate:
        """Compile the chat template."""
        return ChatTemplate(self.template, bos=self.text.name(self.text.bos), eos=self.eos)


def read(spec: ModelSpec) -> Reading:
    """Return what the files say, from `known` if they have been read before.

    Raises FailedPrecondition NO_ENGINE, Unavailable LOAD_FAILED.
    """
    if (found := known.recall(spec)) is not None:
        return found
    config, header = read_config(spec, arrays=True)
    reading = _directory(spec, config) if header is None else _gguf(spec, config, header)
    if reading.text.size > config.vocab:
        why = f"its tokenizer has {reading.text.size} tokens, its embedding {config.vocab}"
        raise damaged(Path(spec.ref), why)
    return reading


def remember(spec: ModelSpec) -> None:
    """Read and keep what workers of the same files will need. Raises as `read`."""
    if not known.touch(spec):
        known.keep(spec, read(spec))


def _gguf(spec: ModelSpec, config: LlamaConfig, header: GgufHeader) -> Reading:
    meta = header.metadata
    text = tokenizers.from_gguf(main_file(spec, ".gguf"), spec.ref, meta)
    eos = text.name(tokenizers.token_id(meta, "tokenizer.ggml.eos_token_id"))
    short = {key: value for key, value in meta.items() if not isinstance(value, list)}
    header = dataclasses.replace(header, metadata=short)
    return Reading(config, header, text, meta.get("tokenizer.chat_template"), eos)


def _directory(spec: ModelSpec, config: LlamaConfig) -> Reading:
    names = ("tokenizer_config.json", "generation_config.json", "config.json")
    present = [read_json(spec, name) if name in spec.files else {} for name in names]
    text = tokenizers.from_json(spec, present)
    source = present[0].get("chat_template")
    if isinstance(source, list):  # several by name
        named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
        source = named.get("default")
    if source is None and "chat_template.jinja" in spec.files:
        source = spec.files["chat_template.jinja"].read_text("utf-8")
    return Reading(config, None, text, source, token_text(present[0].get("eos_token")) or "")
