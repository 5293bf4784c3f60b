"""What readers have in common."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.data.faults import bad_data, bad_option
from llmos.servers.storage.data.inputs import Input, Tick, no_tick
from llmos.servers.storage.data.model import Reading
from llmos.servers.storage.data.text import decoder_of

BATCH_ROWS = 4096
BATCH_BYTES = 4 << 20
MAX_COLUMNS = 10_000
_MAX_NAME = 256  # characters
TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
}


@dataclass
class Context:
    """What a reader is given beside its files.

    unreadable: told the numbers of entries (mails, images) that are left out because they cannot
    be read; without it they are errors. entries: how many were begun.
    """

    reading: Reading = Reading()
    tick: Tick = no_tick
    unreadable: Callable[[int], None] | None = None
    entries: int = 0
    types: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check encoding and types. Raises BAD_OPTION."""
        decoder_of(self.reading.encoding)
        for column, name in self.reading.types.items():
            if name not in TYPES:
                raise bad_option(f"{name!r} is not a type; use {', '.join(TYPES)}.")
            self.types[column] = TYPES[name]

    def leave_out(self, error: InvalidArgument) -> None:
        """Take note of an entry that cannot be read, or raise the error."""
        if self.unreadable is None:
            raise error
        self.unreadable(self.entries)


# (split, record batch), all of one schema.
Parts = Generator[tuple[str, Any], None, None]


class Reader(Protocol):
    """Reads files of one format: yields (split, record batch), all of one schema."""

    def __call__(self, files: Sequence[Input], context: Context) -> Parts:
        """Read. Raises BAD_DATA_FILE, BAD_OPTION, NO_SUCH_SOURCE, Cancelled."""


def check_columns(name: str, columns: Sequence[str]) -> None:
    """Raise BAD_DATA_FILE when the columns of file `name` cannot be kept."""
    if len(columns) > MAX_COLUMNS:
        raise bad_data(name, f"over {MAX_COLUMNS:,} columns", "store them as one list column")
    seen = set()
    for column in columns:
        if len(column) > _MAX_NAME:
            raise bad_data(
                name, f"a column name of over {_MAX_NAME} characters", "give it a shorter name"
            )
        if column in seen:
            raise bad_data(name, f"two columns are called {column!r}", "rename one")
        seen.add(column)


def check_schema(name: str, schema: Any, first: Any) -> None:
    """Raise BAD_DATA_FILE unless a file's schema is that of the first file."""
    if first is None or schema.equals(first):
        return
    for mine, theirs in zip(schema, first, strict=False):
        if mine.name != theirs.name:
            fault = f"its column {mine.name!r} is {theirs.name!r} in the first file"
            break
        if mine.type != theirs.type:
            fault = f"its column {mine.name!r} is {mine.type}, not {theirs.type} as in the first"
            break
    else:
        fault = f"it has {len(schema)} columns and the first file {len(first)}"
    raise bad_data(name, fault, "import files of one shape, or give --type COLUMN=TYPE")


def with_label(schema: Any, files: Sequence[Input]) -> Any:
    """Return the schema; without its label when no file is in a folder that says one."""
    if any(file.label for file in files):
        return schema
    return schema.remove(schema.get_field_index("label"))


def batched(rows: Iterable[tuple[Any, int]]) -> Iterator[list[Any]]:
    """Yield lists of rows from (row, its bytes): BATCH_ROWS or about BATCH_BYTES each."""
    batch: list[Any] = []
    size = 0
    for row, count in rows:
        batch.append(row)
        size += count
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
