"""Keys changed: wrapped by the newest key of the key file; what is still plain gets sealed."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sqlalchemy import select, update

from llmos.lib import failpoint
from llmos.lib.errors import DataLoss
from llmos.servers.storage import caller
from llmos.servers.storage.blobs import rows
from llmos.servers.storage.blobs.placement import unlink
from llmos.servers.storage.blobs.sealing import NAME as KEY_CHECK
from llmos.servers.storage.blobs.store import Blobs
from llmos.servers.storage.crypt.keys import KeyRing, key_needed
from llmos.servers.storage.db import audit
from llmos.servers.storage.db.tables_blobs import blobs as table
from llmos.servers.storage.db.tables_blobs import upkeep, uploads
from llmos.servers.storage.disk import CHUNK, sync_dir, writing
from llmos.servers.storage.upkeep.base import Rekeyed, Step


def rekey(blobs: Blobs) -> Iterator[Rekeyed]:
    """See Maintenance.rekey. Every step leaves a whole store."""
    keys = blobs.keys
    if keys is None:
        raise key_needed()
    with blobs.db.read() as sql:
        files = [row for row in rows.every(sql) if row.form == rows.FILE and not row.fault]
    plain = [row for row in files if row.wrapped_key is None]
    total, done, rewrapped, sealed = sum(row.size for row in plain), 0, 0, 0
    for row in files:
        if row.wrapped_key is not None and not keys.is_current(row.wrapped_key):
            rewrapped += _rewrap(blobs, keys, row)
            yield Rekeyed(Step("wrapping keys", 0, total), rewrapped, 0)
    for row in plain:
        yield Rekeyed(Step(f"sealing {row.sha256[:12]}", done, total), rewrapped, sealed)
        sealed += _seal(blobs, row)
        done += row.size
    rewrapped += _rewrap_rest(blobs, keys)
    with blobs.db.write() as sql:
        detail = {"rewrapped": rewrapped, "sealed": sealed, "key": keys.current.hex()}
        audit.record(sql, caller.current().tenant, "storage.rekey", "", detail)
    yield Rekeyed(Step("done", total, total), rewrapped, sealed)


def _rewrap(blobs: Blobs, keys: KeyRing, row: rows.Row) -> int:
    assert row.wrapped_key is not None
    wrapped = keys.wrap(keys.unwrap(row.wrapped_key, row.sha256), row.sha256)
    with blobs.db.write() as sql:
        same = (table.c.sha256 == row.sha256) & (table.c.wrapped_key == row.wrapped_key)
        return sql.execute(update(table).where(same).values(wrapped_key=wrapped)).rowcount


def _rewrap_rest(blobs: Blobs, keys: KeyRing) -> int:
    """Unfinished uploads, and what tells the right key file at the start: that comes last."""
    with blobs.db.write() as sql:
        count = 0
        for id, sha256, wrapped in sql.execute(
            select(uploads.c.id, uploads.c.sha256, uploads.c.wrapped_key)
        ).all():
            if wrapped is not None and not keys.is_current(wrapped):
                new = keys.wrap(keys.unwrap(wrapped, sha256), sha256)
                sql.execute(update(uploads).where(uploads.c.id == id).values(wrapped_key=new))
                count += 1
        mark = upkeep.c.name == KEY_CHECK
        stored = bytes.fromhex(sql.execute(select(upkeep.c.value).where(mark)).scalar_one())
        if not keys.is_current(stored):
            new = keys.wrap(keys.unwrap(stored, KEY_CHECK), KEY_CHECK)
            sql.execute(update(upkeep).where(mark).values(value=new.hex()))
    return count


def _seal(blobs: Blobs, row: rows.Row) -> int:
    """Put a sealed file in the place of a plain one; return 1, or 0 when the blob went."""
    with blobs.staging() as staging:
        if not blobs.pin(row.sha256):
            return 0
        staging.pinned.append(row.sha256)
        writer = staging.writer()
        with blobs.open(row.sha256) as opened:
            for offset in range(0, row.size, CHUNK):
                writer.write(opened.read(offset, min(CHUNK, row.size - offset)))
        staged = writer.finish()
        if staged.sha256 != row.sha256:
            raise DataLoss(
                "BLOB_DAMAGED",
                f"The file of blob {row.sha256} is damaged; run `llmos-ctl storage fsck --repair`.",
            )
        target = blobs.file(row.sha256, sealed=True)
        with blobs.db.lock:
            with writing(blobs.folder):
                target.unlink(missing_ok=True)
                target.hardlink_to(staged.path)
                sync_dir(target.parent)
            failpoint.hit("seal.linked")
            with blobs.db.write() as sql:
                values = {"wrapped_key": staged.wrapped_key, "checked": time.time()}
                sql.execute(update(table).where(table.c.sha256 == row.sha256).values(values))
            failpoint.hit("seal.rows")
            unlink([blobs.file(row.sha256)])
    return 1
