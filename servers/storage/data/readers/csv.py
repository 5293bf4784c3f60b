"""CSV by Arrow's streaming reader, in blocks; types are taken from the first block."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow

from llmos.servers.storage.data.faults import bad_data, bad_option
from llmos.servers.storage.data.inputs import Input, Tick, no_tick
from llmos.servers.storage.data.readers.base import Context, Parts, check_columns, check_schema
from llmos.servers.storage.data.text import Text

_HEAD = 256 << 10
_BLOCK = 2 << 20  # bytes, the most of a row; Arrow reads up to 32 blocks ahead
_DELIMITERS = "\t,;|"
_CONVERSION = re.compile(r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to (.+?): ")


def delimiter_of(head: str, whole: bool) -> str:
    """Return the delimiter that all of the first rows agree on; "" = none.

    whole: `head` is the whole file, so that its last row is not cut.
    """
    best, most = "", 1
    for delimiter in _DELIMITERS:
        rows = []
        try:
            for row in csv.reader(head.splitlines(keepends=True)[:50], delimiter=delimiter):
                if row:
                    rows.append(len(row))
        except csv.Error:
            continue
        if not whole and len(rows) > 1:
            rows.pop()
        if rows and len(set(rows)) == 1 and rows[0] > most:
            best, most = delimiter, rows[0]
    return best


@dataclass
class _File:
    """One CSV file being read."""

    file: Input
    context: Context
    delimiter: str

    def __post_init__(self) -> None:
        self._bad_row: Any = None

    @contextlib.contextmanager
    def open(self, types: dict[str, Any], tick: Tick) -> Iterator[Any]:
        """Give Arrow's reader. types: of all columns, or of those that the caller gave."""
        reading = self.context.reading
        with (
            # Buffered: Arrow takes what one read gives for a block, and Text gives less.
            io.BufferedReader(
                Text(self.file.open(tick), self.file.name, reading.encoding, _BLOCK)
            ) as text,
            arrow.open_csv(
                text,
                read_options=arrow.ReadOptions(
                    use_threads=False,
                    block_size=_BLOCK,
                    column_names=list(reading.columns) or None,
                ),
                parse_options=arrow.ParseOptions(
                    delimiter=self.delimiter,
                    quote_char=False if reading.no_quotes else '"',
                    newlines_in_values=not reading.no_quotes,
                    invalid_row_handler=self._invalid,
                ),
                convert_options=arrow.ConvertOptions(column_types=types),
            ) as reader,
        ):
            yield reader

    def _invalid(self, row: Any) -> str:
        self._bad_row = row
        return "error"

    def types(self) -> dict[str, Any]:
        """Return the type of each column. Raises BAD_DATA_FILE, BAD_OPTION."""
        given = self.context.types
        try:
            with self.open(given, no_tick) as reader:
                schema = reader.schema
        except pa.ArrowInvalid as exc:
            raise self.error(exc, list(self.context.reading.columns)) from exc
        check_columns(self.file.name, schema.names)
        if missing := sorted(set(given) - set(schema.names)):
            raise bad_option(f"{self.file.name} has no column {missing[0]!r} to give a type to.")
        # Nothing in the first block says what it is: text takes everything.
        return {f.name: pa.string() if pa.types.is_null(f.type) else f.type for f in schema}

    def error(self, exc: Exception, columns: list[str]) -> Exception:
        """Return what Arrow's error means; its own words may quote the row."""
        name, text = self.file.name, str(exc)
        header = 0 if self.context.reading.columns else 1
        if self._bad_row is not None:
            bad = self._bad_row
            return bad_data(
                name,
                f"{bad.actual_columns} values where {bad.expected_columns} are expected",
                "mend the row, quote values that contain the delimiter, or name the --delimiter",
                row=(bad.number or 0) - header,
            )
        if found := _CONVERSION.search(text):
            index = int(found[1])
            column = columns[index] if index < len(columns) else f"number {index + 1}"
            return bad_data(
                name,
                f"column {column!r} has a value that is not {found[3]}",
                f"mend it, or read the column as text: --type {column}=string",
                row=int(found[2] or 0) - header if found[2] else 0,
            )
        if "straddling" in text:
            fault = f"a row of over {_BLOCK >> 20} MiB"
            return bad_data(name, fault, "is a quotation mark missing? Break the row up")
        if "Empty CSV" in text:
            return bad_data(name, "it is empty", "give a file with rows")
        return bad_data(name, "it is not CSV", "name its format by --format")


def read(files: Sequence[Input], context: Context) -> Parts:
    """Read CSV files of the same columns; see Reader."""
    if len(context.reading.delimiter) > 1 or context.reading.delimiter in ('"', "\n", "\r"):
        raise bad_option(f"{context.reading.delimiter!r} is not a delimiter; give one character.")
    types: dict[str, Any] | None = None
    schema = None
    for file in files:
        head = _head(file, context.reading.encoding)
        delimiter = context.reading.delimiter or delimiter_of(*head) or ","
        one = _File(file, context, delimiter)
        types = types or one.types()
        names = list(types)
        try:
            with one.open(types, context.tick) as reader:
                check_columns(file.name, reader.schema.names)
                renamed = _renamed(reader.schema)
                check_schema(file.name, renamed, schema)
                schema = renamed
                for batch in reader:
                    yield file.split, batch.rename_columns(schema.names)
        except pa.ArrowInvalid as exc:
            raise one.error(exc, names) from exc


def _renamed(schema: Any) -> Any:
    """Give a column without a name, like the index that pandas writes, one by its number."""
    names = [name or f"column_{i}" for i, name in enumerate(schema.names, 1)]
    return pa.schema([field.with_name(n) for field, n in zip(schema, names, strict=True)])


def _head(file: Input, encoding: str) -> tuple[str, bool]:
    """Return the first part of a file's text, and whether that is all."""
    with Text(file.open(), file.name, encoding) as text:
        data = text.read(_HEAD) or b""
        whole = not text.read(1)
    return data.decode("utf-8", "ignore"), whole
