"""Bodies of the OpenAI API as this gateway takes them; what it cannot do it refuses by name.

Ranges of sampling parameters are the worker's to check; here are types, shapes, and what the OS
has no word for.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from llmos.lib.errors import InvalidArgument
from llmos.servers.gateway.parameters import check_extra, refused

MAX_INPUTS = 2048  # of Embed, see execution.proto
_UINT32 = 2**32 - 1


def _content(value: object) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("invalid_type", "must be a string or a list of text parts")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise PydanticCustomError(
                "unsupported_value",
                "has a part of type {kind}; only parts of type 'text' are supported",
                {"kind": repr(kind)},
            )
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError("invalid_type", "has a text part without a string `text`")
        texts.append(part["text"])
    return "".join(texts)


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return value
    raise PydanticCustomError("invalid_type", "must be a string or a list of strings")


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= _UINT32 for v in value
    )


def _prompts(value: object) -> list[str | list[int]]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(v, str) for v in value) or all(_is_ids(v) for v in value):
            return value
        if _is_ids(value):
            return [value]
    raise PydanticCustomError(
        "invalid_type", "must be a string, strings, token ids or lists of token ids, and not empty"
    )


def _inputs(value: object) -> list[str]:
    if isinstance(value, list) and value and not isinstance(value[0], str):
        raise PydanticCustomError("invalid_type", "must be text; token ids cannot be embedded")
    return _texts(value)


class Body(BaseModel):
    """What all bodies have in common. Unknown members are kept aside for `check_extra`."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class GenerationBody(Body):
    """What chat and completions share. None means that the client said nothing."""

    max_tokens: Annotated[int, Field(ge=1, le=_UINT32)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=0, le=_UINT32)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Annotated[list[str], BeforeValidator(_texts)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def include_usage(self) -> bool:
        """Return whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]


class ChatBody(GenerationBody):
    """Body of POST /v1/chat/completions."""

    endpoint: ClassVar[str] = "/v1/chat/completions"
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=_UINT32)] | None = None


class CompletionBody(GenerationBody):
    """Body of POST /v1/completions."""

    endpoint: ClassVar[str] = "/v1/completions"
    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)]


class EmbeddingBody(Body):
    """Body of POST /v1/embeddings."""

    endpoint: ClassVar[str] = "/v1/embeddings"
    input: Annotated[list[str], BeforeValidator(_inputs), Field(max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None


B = TypeVar("B", bound=Body)


def parse(cls: type[B], raw: bytes) -> B:
    """Return the body in `raw`.

    Raises InvalidArgument with `details["param"]`: BAD_JSON, MISSING_REQUIRED_PARAMETER,
    INVALID_TYPE, INVALID_VALUE, UNSUPPORTED_PARAMETER, UNKNOWN_PARAMETER.
    """
    try:
        body = cls.model_validate_json(raw)
    except ValidationError as exc:
        raise _invalid(exc) from None
    check_extra("", body.model_extra)
    if isinstance(body, GenerationBody):
        _check_generation(body)
    if isinstance(body, ChatBody):
        for i, message in enumerate(body.messages):
            check_extra(f"messages[{i}].", message.model_extra, known=False)
    return body


def _check_generation(body: GenerationBody) -> None:
    if body.stream_options is not None:
        check_extra("stream_options.", body.stream_options.model_extra, known=False)
        if not body.stream:
            raise refused(
                "INVALID_VALUE", "stream_options", "is only allowed when `stream` is true"
            )
    if isinstance(body, ChatBody) and body.max_tokens and body.max_completion_tokens:
        raise refused(
            "INVALID_VALUE", "max_tokens", "and `max_completion_tokens` exclude each other"
        )


def _invalid(exc: ValidationError) -> InvalidArgument:
    error = exc.errors(include_url=False, include_input=False)[0]
    kind, text = error["type"], error["msg"]
    if kind == "json_invalid":
        return InvalidArgument(
            "BAD_JSON", f"The body is not valid JSON ({text}); send a JSON object in UTF-8."
        )
    param = ""
    for part in error["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    if not param:
        return InvalidArgument("BAD_JSON", "The body must be a JSON object.")
    if kind == "missing":
        return refused("MISSING_REQUIRED_PARAMETER", param, "is required")
    text = text[0].lower() + text[1:]
    if text.startswith(("input should be ", "input should ")):
        text = "should " + text.removeprefix("input should ")
    is_type = kind.endswith("_type") or kind in ("int_from_float", "int_parsing")
    return refused("INVALID_TYPE" if is_type else "INVALID_VALUE", param, text)
