"""Which columns have the text, the label and the content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llmos.servers.storage.data.faults import bad_option
from llmos.servers.storage.data.model import Reading
from llmos.servers.storage.names import short

_ORIGIN = "file"  # of readers of folders: where a row is from, not what it is


@dataclass(frozen=True)
class Roles:
    """Names of columns; text and label may be empty."""

    text: str
    label: str
    content: tuple[str, ...]


def roles_of(schema: Any, reading: Reading) -> Roles:
    """Return the roles of a schema's columns, as asked or as their names say. Raises BAD_OPTION."""
    for name in (reading.text_column, reading.label_column, *reading.content_columns):
        if name and name not in schema.names:
            raise bad_option(f"There is no column {short(name)}; there are {_some(schema.names)}.")
    label = reading.label_column or ("label" if "label" in schema.names else "")
    strings = [
        field.name
        for field in schema
        if _is_text(field.type) and field.name not in (label, _ORIGIN)
    ]
    text = reading.text_column
    if text and not _is_text(schema.field(text).type):
        raise bad_option(f"Column {short(text)} is {schema.field(text).type}, not text.")
    if not text and ("text" in strings or len(strings) == 1):
        text = "text" if "text" in strings else strings[0]
    content = reading.content_columns or tuple(
        name for name in schema.names if name not in (label, _ORIGIN)
    )
    return Roles(text, label, content or tuple(schema.names))


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _some(names: list[str]) -> str:
    return ", ".join(short(name)[1:-1] for name in names[:20]) + (
        ", ..." if len(names) > 20 else ""
    )
