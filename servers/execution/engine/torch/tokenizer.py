"""Text to token ids and each token's bytes, from GGUF metadata or tokenizer.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from llmos.lib.errors import FailedPrecondition
from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.torch import pretokenizers
from llmos.servers.execution.engine.torch.config import main_file
from llmos.servers.execution.engine.torch.gguf_header import damaged

_NORMAL, _CONTROL, _USER = 1, 3, 4  # token types of GGUF
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Ends of a turn or a text that files do not always name as such.
_END_NAMES = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>")


class TextTokenizer:
    """A tokenizer with the bytes of each of its tokens."""

    def __init__(
        self, tokenizer: Tokenizer, *, bos: int | None, ends: set[int], add_bos: bool = False
    ) -> None:
        """Wrap `tokenizer`. bos: first token, prepended to plain prompts if `add_bos`.

        ends: tokens that end a generation.
        """
        self._tokenizer, self.bos, self._add_bos = tokenizer, bos, add_bos
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token for token, about in added.items() if about.special}
        ids = {about.content: token for token, about in added.items()}
        self.ends = frozenset(ends | {ids[name] for name in _END_NAMES if name in ids})
        self._plain = {token for token in added if token not in self._special}
        # Tokens of sentencepiece models spell bytes so; all others use GPT-2's characters.
        self._byte_level = tokenizer.token_to_id("<0x0A>") is None
        self._bytes: dict[int, bytes] = {}
        self.size = tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, rendered: bool = False) -> list[int]:
        """Return the ids of `text`; a `rendered` chat already has its first token."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=not rendered).ids
        if self._add_bos and not rendered and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def same(self, other: TextTokenizer) -> bool:
        """Return whether all tokens have the same numbers in both."""
        return bool(self._tokenizer.get_vocab() == other._tokenizer.get_vocab())

    def name(self, token: int | None) -> str:
        """Return the token as its file spells it; "" for None and ids without a token."""
        return (self._tokenizer.id_to_token(token) or "") if token is not None else ""

    def bytes_of(self, token: int) -> bytes:
        """Return what the token adds to the text; nothing for control tokens."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._spell(token)
        return known

    def _spell(self, token: int) -> bytes:
        text = self.name(token)
        if token in self._special:
            return b""
        if token in self._plain:
            return text.encode()
        if self._byte_level and all(char in _FROM_LEVEL for char in text):
            return bytes(_FROM_LEVEL[char] for char in text)
        if one := _BYTE.fullmatch(text):
            return bytes([int(one[1], 16)])
        return text.replace("▁", " ").encode()


def from_gguf(path: Path, ref: str, metadata: Mapping[str, Any]) -> TextTokenizer:
    """Build the tokenizer from a GGUF file's metadata.

    Raises FailedPrecondition NO_ENGINE for kinds that are not known here, Unavailable LOAD_FAILED
    when parts are missing.
    """
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    pre = str(pre)
    rule = pretokenizers.pre_tokenizer(pre)
    if kind != "gpt2" or rule is None:
        raise FailedPrecondition(
            "NO_ENGINE",
            f"The torch engine cannot run {ref}: its GGUF tokenizer is {kind!r} with the "
            f"pre-tokenizer {pre!r}; import the model as safetensors with its tokenizer.json.",
        )
    tokens = _texts(path, metadata, "tokens")
    merges = [merge.partition(" ")[::2] for merge in _texts(path, metadata, "merges")]
    types: list[Any] = metadata.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if len(types) != len(tokens) or not all(right for _, right in merges):
        raise damaged(path, "the parts of its tokenizer do not fit together")
    vocab = {token: i for i, token in enumerate(tokens)}
    try:
        model = models.BPE(
            vocab=vocab, merges=merges, ignore_merges=pretokenizers.whole_words_first(pre)
        )
    except Exception as error:  # the package raises nothing narrower for merges out of vocabulary
        raise damaged(path, f"its tokenizer is not consistent ({error})") from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = rule
    if (normalizer := pretokenizers.normalizer(pre)) is not None:
        tokenizer.normalizer = normalizer
    for special, wanted in ((True, _CONTROL), (False, _USER)):
        found = [t for t, kind in zip(tokens, types, strict=True) if kind == wanted]
        tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t in found])
    ends = (token_id(metadata, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return TextTokenizer(
        tokenizer,
        bos=token_id(metadata, "tokenizer.ggml.bos_token_id"),
        ends={token for token in ends if token is not None},
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", pre in ("llama-bpe", "llama3"))),
    )


def _texts(path: Path, metadata: Mapping[str, Any], name: str) -> list[str]:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not values or not isinstance(values[0], str):
        raise damaged(path, f"its tokenizer has no {name}")
    return values


def token_id(values: Mapping[str, Any], key: str) -> int | None:
    """Return the token id under `key`; None when it is missing or none."""
    value = values.get(key)
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if fits else None


def from_json(spec: ModelSpec, configs: Sequence[Mapping[str, Any]]) -> TextTokenizer:
    """Load tokenizer.json; `configs` (tokenizer, generation, model) name first and end tokens.

    Raises Unavailable LOAD_FAILED when it cannot be read.
    """
    path = main_file(spec, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except Exception as error:  # the package raises nothing narrower
        raise damaged(Path("tokenizer.json"), f"it is no tokenizer ({error})") from error
    ends: set[int] = set()
    bos: int | None = None
    for config in configs:
        end = config.get("eos_token_id")
        ids = (token_id({"": i}, "") for i in (end if isinstance(end, list) else [end]))
        ends |= {i for i in ids if i is not None}
        if isinstance(name := token_text(config.get("eos_token")), str):
            ends |= {i for i in [tokenizer.token_to_id(name)] if i is not None}
        if bos is None and isinstance(name := token_text(config.get("bos_token")), str):
            bos = tokenizer.token_to_id(name)
        if bos is None:
            bos = token_id(config, "bos_token_id")
    return TextTokenizer(tokenizer, bos=bos, ends=ends)


def token_text(value: Any) -> str | None:
    """Return the text of a token in tokenizer_config.json, where it is a text or an object."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _from_level() -> dict[str, int]:
    """Return GPT-2's map of printable characters to bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_FROM_LEVEL = _from_level()
