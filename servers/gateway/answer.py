"""Whole answers and streams of chunks, from the pieces of one or more generations."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.lib.errors import LLMOSError
from llmos.servers.gateway.faces import ChatChoice, Choice, TextChoice
from llmos.servers.gateway.generation import Pieces

Json = dict[str, Any]
Face = type[ChatChoice] | type[TextChoice]


def _head(face: Face, kind: str) -> Json:
    created = int(time.time())
    return {"id": face.prefix + uuid.uuid4().hex, "object": kind, "created": created, "model": ""}


class _Usage:
    """Tokens of all choices. A prompt counts once, however many choices it has."""

    def __init__(self, choices: Sequence[Choice], per_prompt: int) -> None:
        self._choices, self._each = choices, per_prompt
        self._prompt = self._made = self._cached = 0

    def add(self, index: int, usage: pb.Usage) -> None:
        if index % self._each == 0:
            self._prompt += usage.prompt_tokens
            self._cached += usage.cached_tokens
        if self._choices[index].made:
            self._made += usage.completion_tokens

    def object(self) -> Json:
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._made,
            "total_tokens": self._prompt + self._made,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }


async def whole(face: Face, pieces: Pieces, choices: Sequence[Choice], per_prompt: int) -> Json:
    """Return the answer object; raises what `pieces` raises."""
    answer = _head(face, face.whole_object)
    usage = _Usage(choices, per_prompt)
    async with aclosing(pieces):
        async for index, piece in pieces:
            choices[index].take(piece)
            answer["model"] = piece.model or answer["model"]
            if piece.finish_reason:
                usage.add(index, piece.usage)
    answer["choices"] = [choice.whole() for choice in choices]
    answer["usage"] = usage.object()
    return answer


async def chunks(
    face: Face, pieces: Pieces, choices: Sequence[Choice], per_prompt: int, *, with_usage: bool
) -> AsyncGenerator[list[Json], None]:
    """Yield the chunk objects of all choices, those of a piece together; raises what `pieces` does.

    with_usage: end with a chunk of usage, as `stream_options.include_usage` asks.
    """
    head = _head(face, face.chunk_object)
    tail = {"usage": None} if with_usage else {}
    usage = _Usage(choices, per_prompt)
    running, last = len(choices), []
    try:
        async with aclosing(pieces):
            async for index, piece in pieces:
                head["model"] = piece.model or head["model"]
                made = [{**head, "choices": [c], **tail} for c in choices[index].take(piece)]
                if piece.finish_reason:
                    usage.add(index, piece.usage)
                    running -= 1
                if not running:
                    last += made  # goes out with what ends the stream
                elif made:
                    yield made
    except LLMOSError:
        if last:
            yield last
        raise
    if with_usage:
        last.append({**head, "choices": [], "usage": usage.object()})
    if last:
        yield last
