"""Parquet files, a part of a row group at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmos.servers.storage.data.faults import bad_data
from llmos.servers.storage.data.inputs import Input
from llmos.servers.storage.data.readers.base import (
    BATCH_ROWS,
    Context,
    Parts,
    check_columns,
    check_schema,
)

_MAX_GROUP = 2 << 30  # bytes of a row group when unpacked


def read(files: Sequence[Input], context: Context) -> Parts:
    """Read Parquet files of the same columns; see Reader."""
    schema = None
    for file in files:
        try:
            with file.raw(context.tick) as raw, pq.ParquetFile(raw) as found:
                mine = _check(file.name, found)
                check_schema(file.name, mine, schema)
                schema = schema or mine
                for batch in found.iter_batches(BATCH_ROWS, use_threads=False):
                    batch.validate(full=True)  # e.g. text that is not UTF-8
                    yield file.split, batch.cast(schema)
        except (pa.ArrowException, OSError) as exc:
            raise bad_data(
                file.name, "it is cut, damaged or no Parquet", "fetch or write it again"
            ) from exc


def _check(name: str, file: Any) -> Any:
    """Return the schema to keep: without dictionaries and without foreign metadata."""
    about = file.metadata
    for i in range(about.num_row_groups):
        if about.row_group(i).total_byte_size > _MAX_GROUP:
            fault = f"a row group of over {_MAX_GROUP >> 30} GiB"
            raise bad_data(name, fault, "write it with smaller row groups")
    schema = file.schema_arrow
    check_columns(name, schema.names)
    fields = []
    for field in schema:
        kind = field.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_null(kind):
            kind = pa.string()
        fields.append(pa.field(field.name, kind, metadata=field.metadata))
    return pa.schema(fields)
