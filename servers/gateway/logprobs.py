"""Likelihoods of tokens as the two generating endpoints of the OpenAI API write them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmos.api.execution.v1 import execution_pb2 as pb

Json = dict[str, Any]
_FLOOR = -9999.0  # JSON has no minus infinity; OpenAI writes this


def _number(value: float) -> float:
    return value if value > _FLOOR else _FLOOR


def _bytes(text: str) -> list[int] | None:
    return None if "\ufffd" in text else list(text.encode())


def chat(found: Iterable[pb.TokenLogprob]) -> list[Json]:
    """Return the `content` list of a chat's `logprobs`."""
    return [
        {
            "token": one.text,
            "logprob": _number(one.logprob),
            "bytes": _bytes(one.text),
            "top_logprobs": [
                {"token": t.text, "logprob": _number(t.logprob), "bytes": _bytes(t.text)}
                for t in one.top
            ],
        }
        for one in found
    ]


class TextLogprobs:
    """The `logprobs` object of a completion, which may come in parts."""

    def __init__(self) -> None:
        """Begin at the text's beginning."""
        self._offset = 0

    def take(
        self, found: Iterable[pb.TokenLogprob], *, top: bool, first_unknown: bool = False
    ) -> Json:
        """Return the object for the tokens that follow; first_unknown: the first has none."""
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for i, one in enumerate(found):
            known = i > 0 or not first_unknown
            tokens.append(one.text)
            values.append(_number(one.logprob) if known else None)
            # Of different tokens with equal texts the likelier one counts.
            likely = {t.text: _number(t.logprob) for t in reversed(one.top)}
            likely.setdefault(one.text, _number(one.logprob))
            tops.append(likely if known and top else None)
            offsets.append(self._offset)
            self._offset += len(one.text)
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def joined(parts: Iterable[Json]) -> Json:
    """Return several parts as one."""
    whole: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for part in parts:
        for name, values in whole.items():
            values += part[name]
    return whole
