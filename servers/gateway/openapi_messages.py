"""JSON schemas of protobuf messages, as `lib.values` reads and writes them."""

from __future__ import annotations

from typing import Any

from llmos.lib.values import short_name

Json = dict[str, Any]
_REFS = "#/components/schemas/"
_FLOATS = {"DOUBLE", "FLOAT"}
# proto's integers: least and most value.
_RANGES = {
    "INT32": (-(2**31), 2**31 - 1),
    "UINT32": (0, 2**32 - 1),
    "INT64": (-(2**63), 2**63 - 1),
    "UINT64": (0, 2**64 - 1),
}
_KINDS = {
    1: "DOUBLE",
    2: "FLOAT",
    3: "INT64",
    4: "UINT64",
    5: "INT32",
    6: "UINT64",
    7: "UINT32",
    8: "BOOL",
    9: "STRING",
    12: "BYTES",
    13: "UINT32",
    15: "INT32",
    16: "INT64",
    17: "INT32",
    18: "INT64",
}


class Asked:
    """Schemas of messages as requests; each message is defined once, by its full name."""

    suffix = ""

    def __init__(self, schemas: Json) -> None:
        """Define what is needed in `schemas`."""
        self._schemas = schemas

    def ref(self, message: Any, leave_out: frozenset[str] = frozenset()) -> Json:
        """Return a reference to a message's schema, defining it. leave_out: fields of its path."""
        name = message.full_name + self.suffix
        if name not in self._schemas:
            schema: Json = {"type": "object", "additionalProperties": False, "properties": {}}
            self._schemas[name] = schema  # before its fields, which may hold it again
            for field in message.fields:
                if field.name not in leave_out:
                    schema["properties"][field.name] = self.field(field)
        return {"$ref": _REFS + name}

    def field(self, field: Any) -> Json:
        """Return the schema of a field."""
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            return {
                "type": "object",
                "additionalProperties": self.single(message.fields_by_name["value"]),
            }
        if field.is_repeated:
            return {"type": "array", "items": self.single(field)}
        return self.single(field)

    def single(self, field: Any) -> Json:
        """Return the schema of one value of a field."""
        if field.message_type is not None:
            return self.ref(field.message_type)
        if field.enum_type is not None:
            return {"type": "string", "enum": self.names(field.enum_type)}
        kind = _KINDS[field.type]
        if kind in _RANGES:
            least, most = _RANGES[kind]
            return {"type": "integer", "minimum": least, "maximum": most}
        if kind in _FLOATS:
            return {"type": "number"}
        if kind == "BOOL":
            return {"type": "boolean"}
        return self.bytes() if kind == "BYTES" else {"type": "string"}

    def names(self, enum: Any) -> list[str]:
        """Return what an enum's values are called."""
        return [value.name for value in enum.values]

    def bytes(self) -> Json:
        """Return the schema of bytes."""
        return {"type": "string", "contentEncoding": "base64"}


class Told(Asked):
    """Schemas of messages as answers: fields that are not there are null, enums are short."""

    suffix = ".answer"

    def field(self, field: Any) -> Json:
        """Return the schema of a field."""
        schema = super().field(field)
        # JSON has no word for numbers that are not finite.
        if not field.is_repeated and (field.has_presence or _KINDS.get(field.type) in _FLOATS):
            return {"anyOf": [schema, {"type": "null"}]}
        return schema

    def names(self, enum: Any) -> list[str]:
        """Return what an enum's values are called."""
        return [short_name(enum, value.number) for value in enum.values]

    def bytes(self) -> Json:
        """Return the schema of bytes."""
        return {"type": "string", "description": "Hexadecimal."}


class Written(Asked):
    """Schemas of fields in the query of a URL; messages cannot be written there."""

    def names(self, enum: Any) -> list[str]:
        """Return what an enum's values are called."""
        return [short_name(enum, value.number) for value in enum.values]

    def parameters(self, message: Any, leave_out: frozenset[str]) -> list[Json]:
        """Return the parameters that a message's fields are."""
        return [
            {"name": field.name, "in": "query", "schema": self.field(field)}
            for field in message.fields
            if field.name not in leave_out and field.message_type is None
        ]
