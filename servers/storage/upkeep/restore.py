"""An empty store filled from a backup: all of it is checked before any of it counts."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, Table, delete, insert, select

from llmos.lib import failpoint
from llmos.lib.errors import DataLoss, FailedPrecondition
from llmos.servers.storage import caller
from llmos.servers.storage.blobs import rows
from llmos.servers.storage.blobs.placement import unlink
from llmos.servers.storage.blobs.reader import SealedFile
from llmos.servers.storage.blobs.sealing import NAME as KEY_CHECK
from llmos.servers.storage.blobs.store import SEALED, Blobs
from llmos.servers.storage.db import audit
from llmos.servers.storage.db.tables import metadata
from llmos.servers.storage.db.tables_blobs import blobs as blobs_table
from llmos.servers.storage.disk import CHUNK, sync_dir, writing
from llmos.servers.storage.state.rows import restored
from llmos.servers.storage.upkeep import backup
from llmos.servers.storage.upkeep.base import Restored

# What a store that nobody used may have rows in.
_MAY_BE_THERE = {"audit_log", "upkeep", "state_counter", "quotas"}
_BATCH = 500


@dataclass
class _Read:
    """What was read of a backup so far."""

    manifest: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    end: dict[str, str] | None = None


def restore(blobs: Blobs, stream: IO[bytes]) -> Restored:
    """See Maintenance.restore."""
    with blobs.db.read() as sql:
        _require_empty(sql)
        ours = backup.schema(sql)
    with blobs.staging() as staging:
        with writing(staging.folder):
            read = _unpack(stream, staging.folder, ours)
        if read.end is None or read.end != read.digests:
            raise _bad("it is cut off, or its parts are not those it was made of")
        _check_blobs(blobs, staging.folder)
        return _take(blobs, staging.folder, read)


def _unpack(stream: IO[bytes], folder: Path, ours: str) -> _Read:
    read = _Read()
    known = {f"rows/{table.name}.jsonl" for table in backup.tables()}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise _bad(f"{member.name[:100]!r} does not belong there")
                if member.name == "manifest.json":
                    raw = content.read(CHUNK)
                    read.manifest = json.loads(raw)
                    read.digests[member.name] = hashlib.sha256(raw).hexdigest()
                    _require_schema(read.manifest, ours)
                    continue
                if not read.manifest:
                    raise _bad("it does not begin with a manifest")
                if member.name == "end.json":
                    read.end = json.loads(content.read())
                    continue
                if member.name in known or _is_blob(member.name):
                    target = folder / member.name.replace("/", "+")
                    read.digests[member.name] = _write(content, target)
                else:
                    raise _bad(f"{member.name[:100]!r} does not belong there")
            while stream.read(CHUNK):
                pass  # padding
    except (tarfile.TarError, EOFError, ValueError) as exc:
        raise _bad(str(exc)) from exc
    return read


def _is_blob(name: str) -> bool:
    digest = name.removeprefix("blobs/").removesuffix(SEALED)
    return name.startswith("blobs/") and re.fullmatch("[0-9a-f]{64}", digest) is not None


def _write(content: IO[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    with target.open("xb") as file:
        while data := content.read(CHUNK):
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    target.chmod(0o444)
    return digest.hexdigest()


def _require_schema(manifest: dict[str, Any], ours: str) -> None:
    if manifest.get("layout") != backup.LAYOUT:
        raise _bad(f"its layout {manifest.get('layout')} is not known")
    if manifest.get("schema") != ours:
        raise FailedPrecondition(
            "OTHER_SCHEMA",
            f"The backup has schema {manifest.get('schema')} and this LLM OS {ours}; restore it "
            "with the version that made it, and upgrade then.",
        )


def _require_empty(sql: Connection) -> None:
    for table in metadata.sorted_tables:
        if table.name in _MAY_BE_THERE:
            continue
        if sql.execute(select(table).limit(1)).first() is not None:
            raise FailedPrecondition(
                "NOT_EMPTY",
                f"The store has something in it ({table.name}); restore into an empty state "
                "directory and database.",
            )


def _rows(folder: Path, table: Table) -> Iterator[dict[str, object]]:
    path = folder / f"rows+{table.name}.jsonl"
    if not path.exists():
        raise _bad(f"it lacks the table {table.name}")
    with path.open("rb") as file:
        names = json.loads(next(file, b"[]"))
        if names != [column.name for column in table.columns]:
            raise _bad(f"the table {table.name} has other columns")
        for line in file:
            values = (backup.value_of(value) for value in json.loads(line))
            yield dict(zip(names, values, strict=True))


def _check_blobs(blobs: Blobs, folder: Path) -> None:
    """Compare the files with the rows: all there, none more, each with its digest."""
    expected = set()
    for row in _rows(folder, blobs_table):
        if row["form"] != rows.FILE or row["fault"]:
            continue
        digest, size, wrapped = str(row["sha256"]), int(str(row["size"])), row["wrapped_key"]
        path = folder / f"blobs+{digest}{SEALED if wrapped is not None else ''}"
        expected.add(path.name)
        if not path.exists():
            raise _bad(f"the file of {digest} is missing")
        if wrapped is None:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            assert isinstance(wrapped, bytes)
            try:
                with SealedFile(digest, size, path, blobs.unwrap(wrapped, digest)) as sealed:
                    found = sealed.digest()
            except DataLoss as exc:
                raise _bad(str(exc)) from exc
        if found != digest:
            raise _bad(f"the file of {digest} has other bytes")
    if strange := {path.name for path in folder.glob("blobs+*")} - expected:
        raise _bad(f"no row knows {min(strange)}")


def _take(blobs: Blobs, folder: Path, read: _Read) -> Restored:
    new: list[Path] = []
    with blobs.db.lock:
        try:
            with blobs.db.write() as sql:
                _require_empty(sql)
                with writing(blobs.folder):
                    for path in folder.glob("blobs+*"):
                        name = path.name.removeprefix("blobs+")
                        target = blobs.folder / name[:2] / name
                        target.parent.mkdir(exist_ok=True, mode=0o700)
                        target.unlink(missing_ok=True)
                        target.hardlink_to(path)
                        new.append(target)
                    for parent in {target.parent for target in new}:
                        sync_dir(parent)
                    sync_dir(blobs.folder)
                failpoint.hit("restore.linked")
                count = _insert(blobs, sql, folder)
                restored(sql)
                detail = {"blobs": len(new), "rows": count}
                audit.record(sql, caller.current().tenant, "storage.restore", "", detail)
        except BaseException:  # the rows are rolled back whatever it was; so are the files
            unlink(new)
            raise
    return Restored(len(new), count, float(read.manifest["made"]))


def _insert(blobs: Blobs, sql: Connection, folder: Path) -> int:
    count = 0
    for table in reversed(backup.tables()):
        sql.execute(delete(table))
    for table in backup.tables():
        found = _rows(folder, table)
        while batch := list(itertools.islice(found, _BATCH)):
            for row in batch:
                if row.get("name") == KEY_CHECK and table.name == "upkeep":
                    blobs.unwrap(bytes.fromhex(str(row["value"])), KEY_CHECK)
            with contextlib.closing(sql.execute(insert(table), batch)):
                count += len(batch)
    return count


def _bad(why: str) -> DataLoss:
    return DataLoss("BAD_BACKUP", f"This is not a sound backup: {why[:200]}; nothing was changed.")
