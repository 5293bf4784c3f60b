"""JSON lines: one object a line; types are taken from the first rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import pyarrow as pa

from llmos.servers.storage.data.faults import bad_data
from llmos.servers.storage.data.inputs import Input
from llmos.servers.storage.data.readers.base import (
    Context,
    Parts,
    batched,
    check_columns,
)
from llmos.servers.storage.data.text import Text

_CURE = "mend it, or read the column as another type: --type {}=string"


def read(files: Sequence[Input], context: Context) -> Parts:
    """Read files of JSON lines; see Reader."""
    schema = None
    for file in files:
        first = 1
        for rows in batched(_rows(file, context)):
            schema = schema or _schema(file.name, rows, context)
            yield file.split, _batch(file.name, rows, schema, first)
            first += len(rows)


def _rows(file: Input, context: Context) -> Iterator[tuple[dict[str, Any], int]]:
    with Text(file.open(context.tick), file.name, context.reading.encoding) as text:
        for line, data in enumerate(text.lines(), 1):
            if not data.strip():
                continue
            try:
                row = json.loads(data, object_pairs_hook=_pairs, parse_constant=_constant)
                if b"\\u" in data:  # escapes can write what is no Unicode, and no column can hold
                    json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError as exc:
                fault, cure = "it has half of a character (a surrogate alone)", "write the pair"
                raise bad_data(file.name, fault, cure, line=line) from exc
            except RecursionError as exc:
                raise bad_data(file.name, "it is nested too deep", "flatten it", line=line) from exc
            except _Bad as exc:
                raise bad_data(file.name, exc.fault, exc.cure, line=line) from exc
            except ValueError as exc:
                fault = "it is not one JSON object"
                raise bad_data(file.name, fault, "put each object on one line", line=line) from exc
            if not isinstance(row, dict):
                fault = f"a JSON {type(row).__name__}, not an object"
                raise bad_data(file.name, fault, 'write {"column": value, ...}', line=line)
            yield row, len(data)


class _Bad(Exception):
    def __init__(self, fault: str, cure: str) -> None:
        self.fault, self.cure = fault, cure


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Bad(f"two values are called {twice[:60]!r}", "rename one")
    return found


def _constant(word: str) -> NoReturn:
    raise _Bad(f"{word} is no JSON", "write null")


def _schema(name: str, rows: list[dict[str, Any]], context: Context) -> Any:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns += [column for column in context.types if column not in columns]
    check_columns(name, columns)
    if not columns:
        raise bad_data(name, "its objects are empty", "write at least one value in each", row=1)
    fields = []
    for column in columns:
        wanted = context.types.get(column)
        if wanted is None:
            values = [row.get(column) for row in rows]
            try:
                wanted = pa.infer_type(values)
            except (pa.ArrowException, TypeError, OverflowError) as exc:
                raise _mixed(name, column, values) from exc
            wanted = pa.string() if pa.types.is_null(wanted) else wanted
        fields.append(pa.field(column, wanted))
    return pa.schema(fields)


def _mixed(name: str, column: str, values: list[Any]) -> Exception:
    """Return the error that names the first row whose value is unlike those before."""
    low, high = 0, len(values)  # values[:low] have a type in common, values[:high] have not
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pa.infer_type(values[:middle])
            low = middle
        except (pa.ArrowException, TypeError, OverflowError):
            high = middle
    fault = f"column {column!r} has a value of another type than before"
    return bad_data(name, fault, _CURE.format(column), row=high)


def _batch(name: str, rows: list[dict[str, Any]], schema: Any, first: int) -> Any:
    """Make a batch; `first` is the number of its first row in its file."""
    known = set(schema.names)
    for number, row in enumerate(rows, first):
        if not known.issuperset(row):
            column = next(key for key in row if key not in known)
            fault = f"column {column[:60]!r} was in none of the first rows"
            raise bad_data(name, fault, "give its type: --type COLUMN=TYPE", row=number)
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if pa.types.is_string(field.type):
            values = [_as_text(value) for value in values] if _any_other(values) else values
        try:
            columns.append(pa.array(values, field.type))
        except (pa.ArrowException, TypeError, OverflowError) as exc:
            number = first + next(i for i, v in enumerate(values) if not _fits(v, field.type))
            fault = f"column {field.name!r} has a value that is not {field.type}"
            raise bad_data(name, fault, _CURE.format(field.name), row=number) from exc
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _any_other(values: list[Any]) -> bool:
    return any(value is not None and not isinstance(value, str) for value in values)


def _as_text(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _fits(value: Any, kind: Any) -> bool:
    try:
        pa.array([value], kind)
    except (pa.ArrowException, TypeError, OverflowError):
        return False
    return True
