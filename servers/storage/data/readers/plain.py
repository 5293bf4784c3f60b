"""Plain text: a row a line, or a row a paragraph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa

from llmos.servers.storage.data.faults import bad_data
from llmos.servers.storage.data.inputs import Input
from llmos.servers.storage.data.readers.base import Context, Parts, batched
from llmos.servers.storage.data.text import MAX_ROW, Text

_SCHEMA = pa.schema([("text", pa.string())])
_LABELLED = pa.schema([("text", pa.string()), ("label", pa.string())])


def _read(files: Sequence[Input], context: Context, *, paragraphs: bool) -> Parts:
    labelled = any(file.label for file in files)
    for file in files:
        for rows in batched(_rows(file, context, paragraphs)):
            columns = [pa.array(rows, pa.string())]
            if labelled:
                columns.append(pa.array([file.label or None] * len(rows), pa.string()))
            schema = _LABELLED if labelled else _SCHEMA
            yield file.split, pa.RecordBatch.from_arrays(columns, schema=schema)


def _rows(file: Input, context: Context, paragraphs: bool) -> Iterator[tuple[str, int]]:
    with Text(file.open(context.tick), file.name, context.reading.encoding) as text:
        if not paragraphs:
            yield from ((line.decode(), len(line)) for line in text.lines() if line.strip())
            return
        waiting: list[bytes] = []
        size = 0
        for number, line in enumerate(text.lines(), 1):
            if line.strip():
                waiting.append(line)
                size += len(line) + 1
                if size > MAX_ROW:
                    fault = f"over {MAX_ROW >> 20} MiB without a blank line"
                    raise bad_data(file.name, fault, "read it by --format lines", line=number)
            elif waiting:
                yield b"\n".join(waiting).decode(), size
                waiting, size = [], 0
        if waiting:
            yield b"\n".join(waiting).decode(), size


read_lines = partial(_read, paragraphs=False)
read_paragraphs = partial(_read, paragraphs=True)
