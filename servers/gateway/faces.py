"""One choice of an answer of the OpenAI API: takes a generation's pieces, gives its objects."""

from __future__ import annotations

import uuid
from typing import Any, Protocol

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.servers.gateway import logprobs
from llmos.servers.gateway.schema import ChatBody, CompletionBody
from llmos.servers.gateway.toolcalls import ToolText

Json = dict[str, Any]
_FINISH: dict[int, str] = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


class Choice(Protocol):
    """One choice."""

    made: bool
    """Whether the generation's tokens are in the answer."""

    def take(self, piece: pb.GenerateResponse) -> list[Json]:
        """Take a piece; return the choice objects of its chunks."""

    def whole(self) -> Json:
        """Return the choice object of a whole answer, after all pieces."""


class ChatChoice:
    """A choice of /v1/chat/completions."""

    prefix, whole_object = "chatcmpl-", "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, index: int, body: ChatBody) -> None:
        """Begin with nothing."""
        self.made = True
        self._index, self._wants = index, bool(body.logprobs)
        names = frozenset(tool.function.name for tool in body.tools or ())
        self._tools: ToolText | None = None
        if names and body.tool_choice != "none":
            self._tools = ToolText(names, forced=body.tool_choice not in (None, "auto"))
        self._opened = False
        self._text: list[str] = []
        self._calls: list[Json] = []
        self._likely: list[Json] = []
        self._finish = ""

    def take(self, piece: pb.GenerateResponse) -> list[Json]:
        """Take a piece; return chunks."""
        chunks = []
        if not self._opened:
            self._opened = True
            chunks.append(self._chunk({"role": "assistant", "content": "", "refusal": None}))
        text, calls = piece.text, []
        if self._tools is not None:
            text = self._tools.push(text)
            if piece.finish_reason:
                rest, found = self._tools.flush()
                text += rest
                calls = [
                    {
                        "id": f"call_{uuid.uuid4().hex[:24]}",
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                    for call in found
                ]
        likely = logprobs.chat(piece.logprobs) if self._wants else []
        if text or likely:
            self._text.append(text)
            self._likely += likely
            chunks.append(self._chunk({"content": text}, likely))
        if calls:
            self._calls += calls
            numbered = [{"index": i, **call} for i, call in enumerate(calls)]
            chunks.append(self._chunk({"tool_calls": numbered}))
        if piece.finish_reason:
            self._finish = "tool_calls" if self._calls else _FINISH[piece.finish_reason]
            chunks.append(self._chunk({}, finish=self._finish))
        return chunks

    def _chunk(self, delta: Json, likely: list[Json] | None = None, finish: str = "") -> Json:
        return {
            "index": self._index,
            "delta": delta,
            "logprobs": {"content": likely, "refusal": None} if likely else None,
            "finish_reason": finish or None,
        }

    def whole(self) -> Json:
        """Return the choice with its message."""
        text = "".join(self._text)
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if self._calls:
            message["content"] = text or None
            message["tool_calls"] = self._calls
        return {
            "index": self._index,
            "message": message,
            "logprobs": {"content": self._likely, "refusal": None} if self._wants else None,
            "finish_reason": self._finish,
        }


class TextChoice:
    """A choice of /v1/completions."""

    prefix, whole_object = "cmpl-", "text_completion"
    chunk_object = "text_completion"

    def __init__(self, index: int, body: CompletionBody, prompt: str | list[int]) -> None:
        """Begin with the prompt, where it is to be said again."""
        self.made = body.max_tokens != 0
        self._index, self._body = index, body
        self._prompt = prompt if isinstance(prompt, str) else ""
        self._echoes = bool(body.echo)
        self._offsets = logprobs.TextLogprobs()
        self._text: list[str] = []
        self._likely: list[Json] = []
        self._finish = ""

    def take(self, piece: pb.GenerateResponse) -> list[Json]:
        """Take a piece; return chunks."""
        text, top = piece.text if self.made else "", bool(self._body.logprobs)
        likely: list[Json] = []
        wants = self._body.logprobs is not None
        if self._echoes and (piece.token_ids or piece.text or piece.finish_reason):
            self._echoes = False
            told = piece.prompt_logprobs
            text = (self._prompt or "".join(one.text for one in told)) + text
            if wants:
                likely.append(self._offsets.take(told, top=top, first_unknown=True))
        if wants and self.made and piece.logprobs:
            likely.append(self._offsets.take(piece.logprobs, top=top))
        self._likely += likely
        finish = _FINISH[piece.finish_reason] if piece.finish_reason else None
        self._finish = finish or self._finish
        chunks = []
        if text or likely:
            self._text.append(text)
            chunks.append(self._object(text, likely, None))
        if finish:
            chunks.append(self._object("", [], finish))
        return chunks

    def _object(self, text: str, likely: list[Json], finish: str | None) -> Json:
        return {
            "index": self._index,
            "text": text,
            "logprobs": logprobs.joined(likely) if likely else None,
            "finish_reason": finish,
        }

    def whole(self) -> Json:
        """Return the choice with its text."""
        return self._object("".join(self._text), self._likely, self._finish)
