"""How the two generating endpoints of the OpenAI API show a generation, whole and in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.servers.gateway.generation import Pieces

Json = dict[str, Any]
_FINISH: dict[int, str] = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


class Face(Protocol):
    """The objects of one endpoint."""

    prefix: str
    whole_object: str
    chunk_object: str

    def opening(self, index: int) -> Json | None:
        """Return the choice of the first chunk, if there is one before any text."""

    def chunk(self, index: int, text: str, finish: str | None) -> Json:
        """Return the choice of a chunk with new text or the end."""

    def whole(self, index: int, text: str, finish: str) -> Json:
        """Return the choice of a whole answer."""


class ChatFace:
    """Objects of /v1/chat/completions."""

    prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> Json | None:
        """Return the choice that announces the role."""
        return self._delta(index, {"role": "assistant", "content": "", "refusal": None}, None)

    def chunk(self, index: int, text: str, finish: str | None) -> Json:
        """Return a choice with a delta."""
        return self._delta(index, {"content": text} if text else {}, finish)

    def _delta(self, index: int, delta: Json, finish: str | None) -> Json:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}

    def whole(self, index: int, text: str, finish: str) -> Json:
        """Return a choice with a message."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}


class TextFace:
    """Objects of /v1/completions."""

    prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def opening(self, index: int) -> Json | None:
        """Return None: a text begins with its text."""
        return None

    def chunk(self, index: int, text: str, finish: str | None) -> Json:
        """Return a choice with new text."""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}

    def whole(self, index: int, text: str, finish: str) -> Json:
        """Return a choice with the text."""
        return self.chunk(index, text, finish)


def _head(face: Face, kind: str) -> Json:
    created = int(time.time())
    return {"id": face.prefix + uuid.uuid4().hex, "object": kind, "created": created, "model": ""}


def _usage(prompt_tokens: int, completion_tokens: int) -> Json:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


async def whole(face: Face, pieces: Pieces, count: int) -> Json:
    """Return the answer object of `count` generations; raises what `pieces` raises."""
    answer = _head(face, face.whole_object)
    texts: list[list[str]] = [[] for _ in range(count)]
    finish = [""] * count
    prompt_tokens = completion_tokens = 0
    async with aclosing(pieces):
        async for index, piece in pieces:
            texts[index].append(piece.text)
            answer["model"] = piece.model or answer["model"]
            if piece.finish_reason:
                finish[index] = _FINISH[piece.finish_reason]
                prompt_tokens += piece.usage.prompt_tokens
                completion_tokens += piece.usage.completion_tokens
    answer["choices"] = [face.whole(i, "".join(texts[i]), finish[i]) for i in range(count)]
    answer["usage"] = _usage(prompt_tokens, completion_tokens)
    return answer


async def chunks(face: Face, pieces: Pieces, *, usage: bool) -> AsyncGenerator[Json, None]:
    """Yield the chunk objects of all generations; raises what `pieces` raises.

    usage: end with a chunk of usage, as `stream_options.include_usage` asks.
    """
    head = _head(face, face.chunk_object)
    tail = {"usage": None} if usage else {}
    opened: set[int] = set()
    prompt_tokens = completion_tokens = 0
    async with aclosing(pieces):
        async for index, piece in pieces:
            head["model"] = piece.model or head["model"]
            if index not in opened:
                opened.add(index)
                if (choice := face.opening(index)) is not None:
                    yield {**head, "choices": [choice], **tail}
            if piece.text:
                yield {**head, "choices": [face.chunk(index, piece.text, None)], **tail}
            if piece.finish_reason:
                end = face.chunk(index, "", _FINISH[piece.finish_reason])
                prompt_tokens += piece.usage.prompt_tokens
                completion_tokens += piece.usage.completion_tokens
                yield {**head, "choices": [end], **tail}
    if usage:
        yield {**head, "choices": [], "usage": _usage(prompt_tokens, completion_tokens)}
