"""Messages, functions and formats of a chat as the OpenAI API writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from llmos.servers.gateway.media import Content, medium_of
from llmos.servers.gateway.parameters import publish_closed

_STRICT = ConfigDict(extra="allow", strict=True)
_BASE64 = "(?:[A-Za-z0-9+/]{4})*$"


def _part(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    properties = {"type": {"const": kind}, kind: schema}
    return {"type": "object", "required": [*properties], "properties": properties}


def _holding(name: str, start: str) -> dict[str, Any]:
    member = {"type": "string", "pattern": f"^{start}{_BASE64}"}
    return {"type": "object", "required": [name], "properties": {name: member}}


# What `_content` takes, as published.
_CONTENT = {
    "anyOf": [
        {"type": ["string", "null"]},
        {
            "type": "array",
            "items": {
                "anyOf": [
                    _part("text", {"type": "string"}),
                    _part("refusal", {"type": "string"}),
                    _part("image_url", _holding("url", "data:image/[a-z.+-]+;base64,")),
                    _part("input_audio", _holding("data", "")),
                ]
            },
        },
    ]
}


def _content(value: object) -> Content | None:
    if value is None:
        return None
    if isinstance(value, str):
        return Content(value)
    if not isinstance(value, list):
        raise PydanticCustomError("invalid_type", "must be a string or a list of parts")
    texts, media = [], []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image_url", "input_audio"):
            media.append(medium_of(part))
            continue
        if kind not in ("text", "refusal"):
            raise PydanticCustomError(
                "unsupported_value",
                "has a part of type {kind}; chats take parts of type 'text', 'image_url' and "
                "'input_audio'",
                {"kind": repr(kind)},
            )
        if not isinstance(part.get(kind), str):
            raise PydanticCustomError("invalid_type", "has a text part without a string `text`")
        texts.append(part[kind])
    content = Content("".join(texts))
    content.media = tuple(media)
    return content


def schema_object(value: object) -> dict[str, Any] | None:
    """Return a JSON schema; for use as a validator."""
    if value is None or isinstance(value, dict):
        return value
    raise PydanticCustomError("invalid_type", "must be a JSON schema, an object")


Schema = Annotated[dict[str, Any] | None, BeforeValidator(schema_object)]


class Function(BaseModel):
    """A function that the model may call."""

    model_config = _STRICT

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: Schema = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool; functions are the only ones."""

    model_config = _STRICT

    type: Literal["function"]
    function: Function


class Named(BaseModel):
    """A function by name."""

    model_config = _STRICT

    name: str


class Choice(BaseModel):
    """The function that must be called."""

    model_config = _STRICT

    type: Literal["function"]
    function: Named


_WORD, _OBJECT = "<word>", "<object>"


def _kind(value: object) -> str:
    return _OBJECT if isinstance(value, dict | Choice) else _WORD


# By what a client gave: an error is about that, not about all that would have been taken.
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(_WORD)] | Annotated[Choice, Tag(_OBJECT)],
    Discriminator(_kind),
]


class Called(BaseModel):
    """A function with the arguments that the assistant gave, JSON as text."""

    model_config = _STRICT

    name: str
    arguments: str = "{}"


class ToolCall(BaseModel):
    """A call that the assistant made."""

    model_config = _STRICT

    id: str | None = None
    type: Literal["function"] = "function"
    function: Called


class JsonSchema(BaseModel):
    """A schema with its name."""

    model_config = _STRICT

    name: str = "answer"
    description: str | None = None
    json_schema: Schema = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What the answer has to look like."""

    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Message(BaseModel):
    """One turn of a chat. Without `content` it is an assistant's with `tool_calls`."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra=publish_closed)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Content | None,
        PlainValidator(_content),
        WithJsonSchema(_CONTENT),
    ] = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
