"""Bodies of the OpenAI API as this gateway takes them; what it cannot do it refuses by name.

Ranges of sampling parameters are the worker's to check; here are types, shapes, and what the OS
has no word for.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from llmos.lib.errors import InvalidArgument
from llmos.servers.gateway.media import Medium
from llmos.servers.gateway.messages import Choice, Message, ResponseFormat, Tool, ToolChoice
from llmos.servers.gateway.parameters import check_extra, publish, publish_closed, refused

MAX_INPUTS = 2048  # of Embed, see execution.proto
MAX_CHOICES = 16
_UINT32 = 2**32 - 1


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


# The validators, with what they take as published.
_Ids = Annotated[list[Annotated[int, Field(ge=0, le=_UINT32)]], Field(min_length=1)]
_PromptsIn = (
    str
    | Annotated[list[str], Field(min_length=1)]
    | _Ids
    | Annotated[list[list[Annotated[int, Field(ge=0, le=_UINT32)]]], Field(min_length=1)]
)
_Texts = BeforeValidator(_texts, json_schema_input_type=str | list[str])
_Inputs = BeforeValidator(
    _inputs, json_schema_input_type=str | Annotated[list[str], Field(max_length=MAX_INPUTS)]
)


def _range(least: float, most: float) -> Any:
    """Publish a range that the worker checks."""
    return Field(json_schema_extra={"minimum": least, "maximum": most})


_BIAS = Field(json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}})


class Body(BaseModel):
    """What all bodies have in common. Unknown members are kept aside for `check_extra`."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, json_schema_extra=publish
    )

    model: str


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra=publish_closed)

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class GenerationBody(Body):
    """What chat and completions share. None means that the client said nothing."""

    max_tokens: Annotated[int, Field(ge=1, le=_UINT32)] | None = None
    temperature: Annotated[float | None, _range(0, 2)] = None
    top_p: Annotated[float | None, _range(0, 1)] = None
    top_k: Annotated[int, Field(ge=0, le=_UINT32)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    min_p: Annotated[float | None, _range(0, 1)] = None
    repetition_penalty: Annotated[float | None, _range(0.01, 2)] = None
    speculate: Annotated[int, Field(ge=0, le=16)] | None = None
    presence_penalty: Annotated[float | None, _range(-2, 2)] = None
    frequency_penalty: Annotated[float | None, _range(-2, 2)] = None
    logit_bias: Annotated[dict[str, float] | None, _BIAS] = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Annotated[list[str], _Texts] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def include_usage(self) -> bool:
        """Return whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatBody(GenerationBody):
    """Body of POST /v1/chat/completions."""

    endpoint: ClassVar[str] = "/v1/chat/completions"
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=_UINT32)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    session: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    response_format: ResponseFormat | None = None

    def medium(self) -> Medium | None:
        """Return the image or sound that is asked about, if one is."""
        return next(
            (
                m.content.media[0]
                for m in self.messages
                if m.content is not None and m.content.media
            ),
            None,
        )


class CompletionBody(GenerationBody):
    """Body of POST /v1/completions."""

    endpoint: ClassVar[str] = "/v1/completions"
    prompt: Annotated[
        list[str | list[int]], BeforeValidator(_prompts, json_schema_input_type=_PromptsIn)
    ]
    max_tokens: Annotated[int, Field(ge=0, le=_UINT32)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None


class EmbeddingBody(Body):
    """Body of POST /v1/embeddings."""

    endpoint: ClassVar[str] = "/v1/embeddings"
    input: Annotated[list[str], Field(max_length=MAX_INPUTS), _Inputs]
    encoding_format: Literal["float", "base64"] | None = None


B = TypeVar("B", bound=Body)
M = TypeVar("M", bound=BaseModel)


def parse(cls: type[B], raw: bytes) -> B:
    """Return the body in `raw`.

    Raises InvalidArgument with `details["param"]`: BAD_JSON, MISSING_REQUIRED_PARAMETER,
    INVALID_TYPE, INVALID_VALUE, UNSUPPORTED_PARAMETER, UNKNOWN_PARAMETER.
    """
    body = validated(cls, raw)
    check_extra("", body.model_extra)
    if isinstance(body, GenerationBody):
        _check_generation(body)
    if isinstance(body, ChatBody):
        check_chat(body)
    return body


def validated(cls: type[M], raw: bytes) -> M:
    """Return the JSON in `raw` as a model. Raises InvalidArgument as `parse`."""
    try:
        return cls.model_validate_json(raw)
    except ValidationError as exc:
        raise _invalid(exc) from None


def object_of(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in `raw`. Raises InvalidArgument BAD_JSON."""
    try:
        members = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument("BAD_JSON", f"The body is not JSON: {exc}.") from exc
    if not isinstance(members, dict):
        raise InvalidArgument("BAD_JSON", "The body must be a JSON object.")
    return members


def _check_generation(body: GenerationBody) -> None:
    if body.stream_options is not None:
        check_extra("stream_options.", body.stream_options.model_extra, known=False)
        if not body.stream:
            raise refused(
                "INVALID_VALUE", "stream_options", "is only allowed when `stream` is true"
            )
    for token in body.logit_bias or ():
        if not (token.isascii() and token.isdigit() and int(token[:12]) <= _UINT32):
            raise refused("INVALID_VALUE", "logit_bias", f"has {token[:20]!r}, no token id")
    if isinstance(body, CompletionBody) and body.max_tokens == 0 and not body.echo:
        raise refused("INVALID_VALUE", "max_tokens", "may be 0 together with `echo` only")
    if isinstance(body, CompletionBody | ChatBody) and body.response_format is not None:
        wanted = body.response_format
        if wanted.type == "json_schema" and (
            wanted.json_schema is None or wanted.json_schema.json_schema is None
        ):
            raise refused(
                "MISSING_REQUIRED_PARAMETER", "response_format.json_schema.schema", "is required"
            )


def check_chat(body: ChatBody) -> None:
    """Raise InvalidArgument for what does not go together."""
    for i, message in enumerate(body.messages):
        known = {"refusal", "audio", "annotations", "function_call", "reasoning_content"}
        extra = {k: v for k, v in (message.model_extra or {}).items() if v or k not in known}
        check_extra(f"messages[{i}].", extra, known=False)
        if message.content is None and not (message.role == "assistant" and message.tool_calls):
            if "content" in message.model_fields_set:
                raise refused("INVALID_TYPE", f"messages[{i}].content", "must be text")
            raise refused("MISSING_REQUIRED_PARAMETER", f"messages[{i}].content", "is required")
    _check_media(body)
    if body.session is not None and (body.n or 1) > 1:
        raise refused("INVALID_VALUE", "n", "must be 1 in a `session`, which has one answer")
    if body.max_tokens and body.max_completion_tokens:
        raise refused(
            "INVALID_VALUE", "max_tokens", "and `max_completion_tokens` exclude each other"
        )
    if body.top_logprobs and not body.logprobs:
        raise refused("INVALID_VALUE", "top_logprobs", "needs `logprobs` to be true")
    names = {tool.function.name for tool in body.tools or ()}
    chosen = body.tool_choice
    if isinstance(chosen, Choice) and chosen.function.name not in names:
        raise refused("INVALID_VALUE", "tool_choice", "names a function that `tools` has not")
    if chosen == "required" and not names:
        raise refused("INVALID_VALUE", "tool_choice", "is `required` but there are no `tools`")
    wants_text = body.response_format is None or body.response_format.type == "text"
    if not wants_text and (isinstance(chosen, Choice) or chosen == "required"):
        raise refused("INVALID_VALUE", "response_format", "and a required tool exclude each other")


def _check_media(body: ChatBody) -> None:
    """Refuse what a model that reads images or sounds could only ignore."""
    parts = [one for m in body.messages if m.content is not None for one in m.content.media]
    if not parts:
        return
    said = "".join(m.content or "" for m in body.messages)
    if len(parts) > 1 or len(body.messages) > 1 or said or body.messages[0].role != "user":
        raise refused(
            "INVALID_VALUE",
            "messages",
            "must be one image or sound alone: models here that read them take nothing else, so "
            "leave texts and other messages out",
        )
    for name in ("tools", "response_format", "logprobs", "session"):
        value = getattr(body, name)
        if value and getattr(value, "type", "") != "text":
            raise refused("UNSUPPORTED_PARAMETER", name, "does not go with images and sounds")


def _invalid(exc: ValidationError) -> InvalidArgument:
    error = exc.errors(include_url=False, include_input=False)[0]
    kind, text = error["type"], error["msg"]
    if kind == "json_invalid":
        return InvalidArgument(
            "BAD_JSON", f"The body is not valid JSON ({text}); send a JSON object in UTF-8."
        )
    param = ""
    for part in error["loc"]:
        if str(part).startswith("<"):  # of a union, no member of the body
            continue
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    if not param:
        return InvalidArgument("BAD_JSON", "The body must be a JSON object.")
    if kind == "missing":
        return refused("MISSING_REQUIRED_PARAMETER", param, "is required")
    text = text[0].lower() + text[1:].replace(" after validation", "")
    for subject in ("input ", "list "):
        text = text.removeprefix(subject)
    is_type = kind.endswith("_type") or kind in ("int_from_float", "int_parsing")
    return refused("INVALID_TYPE" if is_type else "INVALID_VALUE", param, text)
