"""The store as one tar file: rows of one moment, and the files they need.

    manifest.json        version of this layout, schema, time; first
    rows/<table>.jsonl   one JSON array of values a row; its first line has the columns' names
    blobs/<sha256>       files as they are stored; sealed ones (<sha256>.sealed) stay sealed
    end.json             {member: sha256}: without it, and last, the backup is cut off

Rows are plain JSON, so that a backup of SQLite can be restored into PostgreSQL and the other way.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import IO

from sqlalchemy import Connection, Table, select, text

from llmos.servers.storage.blobs import rows
from llmos.servers.storage.blobs.reader import damaged
from llmos.servers.storage.blobs.store import Blobs
from llmos.servers.storage.db.tables import metadata
from llmos.servers.storage.disk import CHUNK
from llmos.servers.storage.upkeep.base import Step

LAYOUT = 1
LEFT_OUT = {"uploads"}  # what is not finished


def tables() -> list[Table]:
    """Return what is in a backup, in an order in which rows can be inserted."""
    return [table for table in metadata.sorted_tables if table.name not in LEFT_OUT]


def schema(sql: Connection) -> str:
    """Return the revision of the database's schema."""
    return str(sql.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def backup(blobs: Blobs, temporary: Callable[[], IO[bytes]]) -> Iterator[Step | bytes]:
    """Yield the tar file and progress. temporary: makes a file for rows. Raises BLOB_DAMAGED."""
    digests: dict[str, str] = {}
    with contextlib.ExitStack() as held:
        view = contextlib.ExitStack()
        with blobs.db.lock:  # nothing is written meanwhile: the view and the pins agree
            held.push(view)
            sql = view.enter_context(blobs.db.read())
            files = [row for row in rows.every(sql) if row.form == rows.FILE and not row.fault]
            held.callback(blobs.unpin, [r.sha256 for r in files if blobs.pin(r.sha256)])
        total, done = sum(row.size for row in files), 0
        yield Step("writing the rows", 0, total)
        manifest = {"layout": LAYOUT, "schema": schema(sql), "made": time.time()}
        yield from _member("manifest.json", json.dumps(manifest).encode(), digests)
        for table in tables():
            with temporary() as file:
                _dump(sql, table, file)
                size = file.tell()
                file.seek(0)
                yield from _stream(f"rows/{table.name}.jsonl", size, _chunks(file), digests)
        view.close()
        for row in files:
            yield Step(f"writing {row.sha256[:12]}", done, total)
            yield from _blob(blobs, row, digests)
            done += row.size
        yield Step("finishing", total, total)
        yield from _member("end.json", json.dumps(digests).encode(), {})
        yield bytes(2 * tarfile.BLOCKSIZE)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while data := file.read(CHUNK):
        yield data


def _blob(blobs: Blobs, row: rows.Row, digests: dict[str, str]) -> Iterator[bytes]:
    path = blobs.file(row.sha256, row.wrapped_key is not None)
    if row.wrapped_key is not None and blobs.keys is not None:
        with blobs.open(row.sha256) as opened:
            if opened.digest() != row.sha256:
                raise damaged(row.sha256, "its bytes changed")
    try:
        file = path.open("rb")
    except OSError as exc:
        raise damaged(row.sha256, exc.strerror or "not there") from exc
    with file:
        size = os.fstat(file.fileno()).st_size
        name = f"blobs/{path.name}"
        yield from _stream(name, size, _chunks(file), digests)
    if row.wrapped_key is None and digests[name] != row.sha256:
        raise damaged(row.sha256, "its bytes changed")


def _dump(sql: Connection, table: Table, file: IO[bytes]) -> None:
    names = [column.name for column in table.columns]
    file.write(json.dumps(names).encode() + b"\n")
    query = select(table).execution_options(yield_per=1000)
    for row in sql.execute(query):
        file.write(json.dumps([_plain(value) for value in row]).encode() + b"\n")


def _plain(value: object) -> object:
    if isinstance(value, (bytes, memoryview)):
        return {"b64": base64.b64encode(value).decode()}
    return value


def value_of(plain: object) -> object:
    """Return the value that `_plain` made JSON of."""
    return base64.b64decode(plain["b64"]) if isinstance(plain, dict) else plain


def _member(name: str, content: bytes, digests: dict[str, str]) -> Iterator[bytes]:
    yield from _stream(name, len(content), iter([content]), digests)


def _stream(
    name: str, size: int, chunks: Iterator[bytes], digests: dict[str, str]
) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(time.time())
    yield info.tobuf(format=tarfile.PAX_FORMAT)
    digest, left = hashlib.sha256(), size
    for chunk in chunks:
        data = chunk[:left]
        left -= len(data)
        digest.update(data)
        yield data
    if left:
        raise damaged(name.rpartition("/")[2], "it ends too early")
    digests[name] = digest.hexdigest()
    yield bytes(-size % tarfile.BLOCKSIZE)
