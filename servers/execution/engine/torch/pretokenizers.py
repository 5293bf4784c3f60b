"""How text is cut before byte-pair merging, by the name in a GGUF file (`tokenizer.ggml.pre`)."""

from __future__ import annotations

from tokenizers import Regex, normalizers, pre_tokenizers

_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # punctuation, line ends, blanks
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2 = frozenset({"default", "gpt-2", "gpt2", "phi-2", "olmo", "mpt", "roberta-bpe", "jais"})
_DIGITS = frozenset(  # each digit alone, then as GPT-2
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
_LLAMA3 = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "dbrx", "smaug-bpe"})
_QWEN2 = frozenset({"qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"})

PreTokenizer = pre_tokenizers.PreTokenizer


def pre_tokenizer(name: str) -> PreTokenizer | None:
    """Return the rule of that name; None when it is not known here."""
    if name in _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in _DIGITS:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if name in _LLAMA3:
        return _split(_WORD + r"|\p{N}{1,3}" + _TAIL)
    if name in _QWEN2:
        return _split(_WORD + r"|\p{N}" + _TAIL)
    return None


def normalizer(name: str) -> normalizers.Normalizer | None:
    """Return what is done to text before it is cut: qwen2 composes accents."""
    return normalizers.NFC() if name in _QWEN2 else None


def whole_words_first(name: str) -> bool:
    """Say whether a word that is in the vocabulary is taken without merging."""
    return name in _LLAMA3


def _split(pattern: str) -> PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
