"""What a row's content is: digests that are equal when rows are, exactly or after normalising."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_NOISE = r"[\s\pP\pS\pC\pZ]+"


def normalized(column: Any) -> Any:
    """Return a column of text without differences of case, width, punctuation and white space.

    Unicode NFKC, lower case, everything that is neither letter, mark nor digit one space. Text
    that has nothing else stays as it is.
    """
    text = pc.utf8_lower(pc.utf8_normalize(column, "NFKC"))
    text = pc.utf8_trim_whitespace(pc.replace_substring_regex(text, _NOISE, " "))
    return pc.if_else(pc.equal(text, ""), column, text)


def digests(batch: Any, columns: Sequence[str], *, normal: bool) -> list[bytes]:
    """Return a 16-byte digest for each row over these columns; normal: of normalised text."""
    cells = [_cells(batch.column(name), normal) for name in columns]
    found = []
    for row in zip(*cells, strict=True):
        digest = hashlib.blake2b(digest_size=16)
        for cell in row:
            if cell is None:
                digest.update(b"-")
            else:
                digest.update(b"%d:" % len(cell))
                digest.update(cell)
        found.append(digest.digest())
    return found


def _cells(column: Any, normal: bool) -> list[bytes | None]:
    """Return each value of a column as bytes; equal bytes, equal values."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = normalized(column) if normal else column
        large = pa.types.is_large_string(column.type)
        return list(column.cast(pa.large_binary() if large else pa.binary()).to_pylist())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return list(column.to_pylist())
    if pa.types.is_primitive(kind):
        return list(column.cast(pa.string()).cast(pa.binary()).to_pylist())
    if pa.types.is_fixed_size_list(kind) and not column.null_count:
        values = column.flatten()
        if pa.types.is_primitive(kind.value_type) and not values.null_count:
            rows = values.to_numpy(zero_copy_only=False).reshape(len(column), -1)
            return [row.tobytes() for row in rows]
    return [None if value is None else repr(value).encode() for value in column.to_pylist()]


def has_text(schema: Any, columns: Sequence[str]) -> bool:
    """Return whether normalising changes anything about these columns."""
    kinds = [schema.field(name).type for name in columns]
    return any(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds)
