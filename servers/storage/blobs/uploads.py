"""Unfinished uploads: uploads/<id> and a row each, until they are blobs, given up, or too old."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from llmos.lib import failpoint
from llmos.lib.errors import DataLoss, FailedPrecondition, LLMOSError, NotFound
from llmos.servers.storage import caller, names
from llmos.servers.storage.blobs.placement import unlink
from llmos.servers.storage.blobs.session import Begun, Session
from llmos.servers.storage.blobs.staging import Staged
from llmos.servers.storage.blobs.store import Blobs
from llmos.servers.storage.blobs.uploads_base import Part, Upload, Uploads
from llmos.servers.storage.db import audit, quota
from llmos.servers.storage.db.tables_blobs import uploads
from llmos.servers.storage.disk import require_room, sync_dir, writing

log = logging.getLogger(__name__)
SYNC_EVERY = 64 << 20  # bytes; so much is sent again at most after a crash
_LISTED = 1000
_ID = re.compile("[0-9a-f]{64}-[0-9a-f]{16}")
_OPEN = 64  # files kept open


class LocalUploads(Uploads):
    """Implements Uploads. Nothing of it blocks the event loop."""

    def __init__(self, folder: Path, blobs: Blobs, ttl_s: float = 86400.0) -> None:
        """Go on with the uploads in `folder`, on the file system of the blobs; clear leftovers."""
        self._folder = folder
        self._blobs = blobs
        self._db = blobs.db
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        with writing(folder):
            folder.mkdir(exist_ok=True, mode=0o700)
        self._recover()

    def _recover(self) -> None:
        with self._db.write() as sql:
            rows = set(sql.execute(select(uploads.c.id)).scalars())
            files = {file.name: file for file in self._folder.iterdir()}
            unlink(file for name, file in files.items() if name not in rows)
            for id in rows - files.keys():
                sql.execute(delete(uploads).where(uploads.c.id == id))

    def close(self) -> None:
        """Close the files."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    async def create(self, sha256: str, size: int) -> Upload | None:
        """See Uploads."""
        names.check_digest(sha256)
        return await asyncio.to_thread(self._create, sha256, size)

    def _create(self, sha256: str, size: int) -> Upload | None:
        if self._blobs.touch(sha256) >= 0:
            return None
        tenant = caller.current().tenant
        same = (uploads.c.tenant == tenant) & (uploads.c.sha256 == sha256)
        with self._db.write() as sql:
            mine = same & (uploads.c.size == size) & (uploads.c.expires > time.time())
            if row := sql.execute(select(uploads).where(mine)).first():
                return _upload(row)
            quota.require(sql, tenant, size)
            require_room(self._folder, size)
            id = f"{sha256}-{uuid.uuid4().hex[:16]}"
            wrapped = self._blobs.keys.new(sha256)[1] if self._blobs.keys is not None else None
            with writing(self._folder):
                (self._folder / id).touch(0o600)
                sync_dir(self._folder)
            row_values = {
                "id": id,
                "tenant": tenant,
                "sha256": sha256,
                "size": size,
                "received": 0,
                "expires": time.time() + self._ttl_s,
                "wrapped_key": wrapped,
            }
            sql.execute(insert(uploads).values(row_values))
            failpoint.hit("upload.created")
            return self._get(sql, id)

    def _get(self, sql: Connection, id: str) -> Upload:
        return _upload(self._row(sql, id))

    def _row(self, sql: Connection, id: str) -> Row[Any]:
        mine = (uploads.c.id == id) & (uploads.c.tenant == caller.current().tenant)
        row = sql.execute(select(uploads).where(mine)).first() if _ID.fullmatch(id) else None
        if row is None:
            raise NotFound(
                "NO_SUCH_UPLOAD",
                f"There is no upload {names.short(id)} (any more); create it again.",
            )
        return row

    @contextlib.contextmanager
    def _session(self, id: str) -> Iterator[Session]:
        """Give the upload's session, alone. Raises NO_SUCH_UPLOAD."""
        while True:
            session = self._opened(id)
            session.lock.acquire()
            if self._sessions.get(id) is session:
                break
            session.lock.release()  # it was closed while this waited
        try:
            yield session
        finally:
            session.lock.release()

    def _opened(self, id: str) -> Session:
        with self._db.read() as sql:
            row = self._row(sql, id)
        with self._lock:
            if session := self._sessions.get(id):
                return session
        key = self._blobs.unwrap(row.wrapped_key, row.sha256) if row.wrapped_key else None
        made = Session(self._folder / id, Begun(id, row.sha256, row.size, row.received, key))
        with self._lock:
            session = self._sessions.setdefault(id, made)
        if session is not made:
            made.close()
        return session

    def _forget(self, id: str, held: bool = False) -> None:
        """Close a session; `held`: the caller has its lock."""
        with self._lock:
            session = self._sessions.pop(id, None)
        if session is not None:
            with contextlib.nullcontext() if held else session.lock:
                session.close()

    def _append(self, id: str, part: Part) -> int:
        with self._session(id) as session:
            try:
                session.append(part)
            except LLMOSError as exc:
                if exc.reason in ("DISK_FULL", "READ_ONLY"):  # what is written is not known
                    self._forget(id, held=True)
                raise
            return session.written

    def _sync(self, id: str) -> int:
        with self._session(id) as session:
            durable = session.sync()
            with self._db.write() as sql:
                values = {"received": durable, "expires": time.time() + self._ttl_s}
                sql.execute(update(uploads).where(uploads.c.id == id).values(values))
        self._close_idle()
        return durable

    def _close_idle(self) -> None:
        with self._lock:
            for id, session in list(self._sessions.items())[:-_OPEN]:
                if session.lock.acquire(blocking=False):
                    del self._sessions[id]
                    session.close()
                    session.lock.release()

    async def append(self, id: str, parts: AsyncIterator[Part]) -> int:
        """See Uploads."""
        synced = written = (await self.get(id)).offset
        try:
            async for part in parts:
                written = await asyncio.to_thread(self._append, id, part)
                if written - synced >= SYNC_EVERY:
                    await asyncio.to_thread(self._sync, id)
                    synced = written
        except BaseException:
            # Keep what came; the cause is what is told, and a full disk may have been just that.
            saving = asyncio.ensure_future(asyncio.to_thread(self._sync, id))
            await asyncio.wait([saving])
            if exc := saving.exception():
                log.info("cannot keep a part of an upload", extra={"cause": str(exc)})
            raise
        return await asyncio.to_thread(self._sync, id)

    async def get(self, id: str) -> Upload:
        """See Uploads."""

        def read() -> Upload:
            with self._db.read() as sql:
                return self._get(sql, id)

        return await asyncio.to_thread(read)

    async def list(self) -> Sequence[Upload]:
        """See Uploads."""

        def read() -> Sequence[Upload]:
            mine = uploads.c.tenant == caller.current().tenant
            query = select(uploads).where(mine).order_by(uploads.c.expires).limit(_LISTED)
            with self._db.read() as sql:
                return [_upload(row) for row in sql.execute(query)]

        return await asyncio.to_thread(read)

    async def commit(self, id: str) -> tuple[str, int]:
        """See Uploads."""
        return await asyncio.to_thread(self._commit, id)

    def _commit(self, id: str) -> tuple[str, int]:
        sha256 = id.partition("-")[0]
        here = None
        if _ID.fullmatch(id):
            with self._db.read() as sql:
                here = sql.execute(select(uploads.c.id).where(uploads.c.id == id)).first()
        if here is None and _ID.fullmatch(id):
            (size,) = self._blobs.sizes([sha256])
            if size >= 0:  # committed before
                return sha256, size
        with self._session(id) as session:
            begun = session.begun
            if session.written < begun.size:
                raise FailedPrecondition(
                    "UPLOAD_INCOMPLETE",
                    f"{begun.size - session.written} of {begun.size} bytes are missing; go on at "
                    f"{session.written}.",
                    details={"offset": str(session.written)},
                )
            found = session.finish()
            if found != begun.sha256:
                self._remove(id, held=True)
                raise DataLoss(
                    "DIGEST_MISMATCH",
                    f"The {begun.size} bytes received have the sha256 {found}, not "
                    f"{begun.sha256}; begin again.",
                )
            with self._db.read() as sql:
                wrapped = sql.execute(
                    select(uploads.c.wrapped_key).where(uploads.c.id == id)
                ).scalar()
            staged = Staged(found, begun.size, session.path, wrapped)
            with self._blobs.placing([staged]) as sql:
                sql.execute(delete(uploads).where(uploads.c.id == id))
                tenant, detail = caller.current().tenant, {"bytes": begun.size}
                quota.charge(sql, tenant, begun.size, kind=quota.UPLOAD, subject=found)
                audit.record(sql, tenant, "blob.upload", found, detail)
            failpoint.hit("upload.committed")
            self._forget(id, held=True)
        unlink([self._folder / id])
        return found, begun.size

    async def abort(self, id: str) -> None:
        """See Uploads."""

        def drop() -> None:
            with self._db.read() as sql:
                self._row(sql, id)
            self._remove(id)

        with contextlib.suppress(NotFound):
            await asyncio.to_thread(drop)

    def _remove(self, id: str, held: bool = False) -> None:
        with self._db.write() as sql:
            sql.execute(delete(uploads).where(uploads.c.id == id))
        self._forget(id, held)
        unlink([self._folder / id])

    def collect(self) -> int:
        """Give up those that are too old; return how many."""
        with self._db.read() as sql:
            old = list(
                sql.execute(select(uploads.c.id).where(uploads.c.expires < time.time())).scalars()
            )
        for id in old:
            self._remove(id)
        return len(old)


def _upload(row: Row[Any]) -> Upload:
    return Upload(row.id, row.sha256, row.size, row.received, row.expires)
