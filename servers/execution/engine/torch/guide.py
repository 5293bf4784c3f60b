"""Keeps a text within a JSON schema, a regular expression or a grammar, by masks over the tokens.

The matching is llguidance's (Earley parser over the bytes of tokens). A matcher's state is a
function of the tokens so far, so that a resumed stream restores it by reading them again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmos.lib.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from llmos.servers.execution.engine.torch.tokenizer import TextTokenizer


class Guide:
    """One text's matcher."""

    def __init__(self, matcher: Any, vocab: int) -> None:
        """Take over `matcher`, of llguidance."""
        self._matcher, self._words = matcher, -(-vocab // 32)

    @property
    def finished(self) -> bool:
        """Say whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Tensor:
        """Return the bits of the tokens that may follow: int32 [ceil(vocab / 32)]."""
        mask = torch.zeros(self._words, dtype=torch.int32)
        self._matcher.unsafe_compute_mask_ptr(mask.data_ptr(), mask.numel() * 4)
        return mask

    def accept(self, token: int) -> None:
        """Go on after `token`; one that may not follow ends the text."""
        self._matcher.consume_token(token)


class Guides:
    """Makes guides for one tokenizer. Thread-safe."""

    def __init__(self, text: TextTokenizer, vocab: int) -> None:
        """Prepare nothing yet: most models are never asked for a guide."""
        self._text, self._vocab = text, vocab
        self._lock = threading.Lock()
        self._tokenizer: Any = None

    def make(self, kind: str, source: str) -> Guide:
        """Return a guide; kind: `json_schema`, `regex` or `grammar` (Lark).

        Raises InvalidArgument BAD_CONSTRAINT when `source` cannot be read, or when no text
        satisfies it; FailedPrecondition MISSING_EXTRA.
        """
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise FailedPrecondition(
                "MISSING_EXTRA",
                "Constraints need the package llguidance, which is not installed: "
                "pip install 'llmos[execution]'.",
            ) from error
        translate = {
            "json_schema": LLMatcher.grammar_from_json_schema,
            "regex": LLMatcher.grammar_from_regex,
            "grammar": LLMatcher.grammar_from_lark,
        }[kind]
        try:
            grammar = translate(source)
            tokenizer = self._own()
            why = LLMatcher.validate_grammar(grammar, tokenizer)
        except ValueError as error:  # what the package raises for what it cannot read
            raise _bad(kind, str(error)) from error
        if why:
            raise _bad(kind, why)
        # log_level 0: it writes to stderr otherwise.
        guide = Guide(LLMatcher(tokenizer, grammar, log_level=0), self._vocab)
        if not guide.allowed().any():
            raise _bad(kind, "no text of this model's tokens satisfies it")
        return guide

    def _own(self) -> Any:
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._lock:
            if self._tokenizer is None:
                words = _Words(self._text, self._vocab)
                self._tokenizer = LLTokenizer(
                    TokenizerWrapper(words), n_vocab=self._vocab, eos_token=sorted(self._text.ends)
                )
            return self._tokenizer


class _Words:
    """A tokenizer as llguidance wants it described."""

    def __init__(self, text: TextTokenizer, vocab: int) -> None:
        if not text.ends:
            raise InvalidArgument(
                "BAD_CONSTRAINT", "This model has no token that ends a text; it cannot be guided."
            )
        self._text = text
        self.eos_token_id, self.bos_token_id = min(text.ends), text.bos
        # What has no bytes is a control token, which llguidance spells after a byte 0xFF.
        self.tokens = [
            text.bytes_of(i) or b"\xff[%d]" % i if i < text.size else b"\xff[%d]" % i
            for i in range(vocab)
        ]
        self.special_token_ids = [i for i, word in enumerate(self.tokens) if word[:1] == b"\xff"]

    def __call__(self, text: bytes | str) -> Sequence[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._text.encode(plain, rendered=True)


def _bad(kind: str, why: str) -> InvalidArgument:
    names = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}
    first = " ".join(why.split())[:300].rstrip(".")
    return InvalidArgument(
        "BAD_CONSTRAINT", f"The {names[kind]} cannot be followed: {first}.", details={"param": kind}
    )
