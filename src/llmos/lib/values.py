"""Messages as plain values for JSON, and back: for people and programs that read no protobuf."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from llmos.lib.errors import InvalidArgument

if TYPE_CHECKING:
    from google.protobuf.message import Message

M = TypeVar("M", bound="Message")
Value = Any  # what json.dumps takes


def like(kind: type[M], thing: object, **fields: object) -> M:
    """Return a message of `fields`, and of the attributes of `thing` named like other fields."""
    names = [f.name for f in kind.DESCRIPTOR.fields if f.name not in fields]
    return kind(**{n: getattr(thing, n) for n in names if hasattr(thing, n)}, **fields)


def as_value(message: Message) -> dict[str, Value]:
    """Return a message as JSON values: every field, numbers as numbers, enums as short names."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: Any) -> Value:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {str(key): item for key, item in value.items()}
    if field.is_repeated:
        return [_single(item, field) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _single(value, field)


def _single(value: Value, field: Any) -> Value:
    if field.message_type is not None:
        return as_value(value)
    if field.enum_type is not None:
        return short_name(field.enum_type, value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such numbers
    return value.hex() if isinstance(value, bytes) else value


def short_name(enum_type: Any, number: int) -> str:
    """Return an enum value's name in lower case without its type's prefix, e.g. `running`."""
    value = enum_type.values_by_number.get(number)
    if value is None:
        return str(number)
    return str(value.name.removeprefix(_prefix(enum_type)).lower())


def _prefix(enum_type: Any) -> str:
    name = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum_type.name).lstrip("_")
    return f"{name}_"


def from_value(cls: type[M], members: Mapping[str, Value]) -> M:
    """Return the message that JSON members say; bytes are base64.

    Raises InvalidArgument BAD_FIELD naming what is unknown or of another type.
    """
    from google.protobuf import json_format  # not needed by those who only print

    message = cls()
    try:
        json_format.ParseDict(dict(members), message)
    except json_format.ParseError as exc:
        said = str(exc).partition("\n")[0]
        known = ", ".join(field.name for field in cls.DESCRIPTOR.fields) or "no members"
        raise InvalidArgument("BAD_FIELD", f"{said} {cls.DESCRIPTOR.name} has: {known}.") from exc
    return message


def from_text(cls: type[M], pairs: Mapping[str, list[str]]) -> M:
    """Return the message whose fields are given as text, as in the query of a URL.

    Enums go by short or full name, booleans by true, 1, false, 0. Raises InvalidArgument BAD_FIELD.
    """
    fields = cls.DESCRIPTOR.fields_by_name
    members: dict[str, Value] = {}
    for name, texts in pairs.items():
        field = fields.get(name)
        if field is not None and field.is_repeated:
            members[name] = [_typed(field, text) for text in texts]
        else:
            members[name] = _typed(field, texts[-1])
    return from_value(cls, members)


def _typed(field: Any, text: str) -> Value:
    if field is not None and field.type == field.TYPE_BOOL:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if field is not None and field.enum_type is not None:
        full = _prefix(field.enum_type) + text.upper()
        return full if full in field.enum_type.values_by_name else text
    return text
