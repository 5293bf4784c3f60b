"""Upkeep of a store on this host; owns the threads and the one-at-a-time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, cast

from sqlalchemy import func, select

from llmos.lib.errors import Aborted, InvalidArgument, LLMOSError
from llmos.lib.publish import Tell, nobody
from llmos.servers.storage.blobs import removal, rows
from llmos.servers.storage.blobs.store import Blobs
from llmos.servers.storage.blobs.uploads import LocalUploads
from llmos.servers.storage.crypt.stream import sealed_size
from llmos.servers.storage.db.tables_blobs import uploads as uploads_table
from llmos.servers.storage.upkeep import backup, fsck, rekey, restore
from llmos.servers.storage.upkeep import scrub as scrubbing
from llmos.servers.storage.upkeep.base import (
    Collected,
    Finding,
    Maintenance,
    Rekeyed,
    Restored,
    Space,
    Step,
    Summary,
)
from llmos.servers.storage.upkeep.threads import Pipe, in_thread, with_result

log = logging.getLogger(__name__)
_IDLE_S = 60.0


class LocalMaintenance(Maintenance):
    """Implements Maintenance. Nothing of it blocks the event loop."""

    def __init__(
        self,
        folder: Path,
        blobs: Blobs,
        uploads: LocalUploads,
        *,
        grace_s: float = 86400.0,
        tell: Tell = nobody,
        collect_more: Callable[[], object] = lambda: None,
    ) -> None:
        """Look after the store in `folder`.

        grace_s: how long what nothing needs stays. tell: told of damage (event storage.damaged).
        collect_more: called with every collection, in a thread.
        """
        self._folder = folder
        self._aside = folder / "quarantine"
        self._blobs = blobs
        self._uploads = uploads
        self._grace_s = grace_s
        self._tell = tell
        self._collect_more = collect_more
        self._busy = ""
        self.restored = asyncio.Event()  # what is in memory is of the store before: start anew

    @contextlib.contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        if self._busy:
            raise Aborted(
                "BUSY", f"A {self._busy} is running; wait for its end, or stop it, and try again."
            )
        self._busy = what
        try:
            yield
        finally:
            self._busy = ""

    def _temporary(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._blobs.temporary)

    # Space.

    async def df(self) -> Space:
        """See Maintenance."""
        return await asyncio.to_thread(self._df)

    def _df(self) -> Space:
        with self._blobs.db.read() as sql:
            every = rows.every(sql)
            unused = {row.sha256 for row in rows.every(sql, rows.unused(math.inf))}
            received = sql.execute(select(func.sum(uploads_table.c.received))).scalar()
        stored = {
            row.sha256: sealed_size(row.size) if row.wrapped_key is not None else row.size
            for row in every
            if row.form == rows.FILE and not row.fault
        }
        disk = shutil.disk_usage(self._folder)
        aside = self._aside.iterdir() if self._aside.is_dir() else ()
        return Space(
            blobs=len(every),
            blob_bytes=sum(row.size for row in every),
            stored_bytes=sum(stored.values()),
            unused_bytes=sum(size for digest, size in stored.items() if digest in unused),
            cache_bytes=self._blobs.cache.usage(),
            upload_bytes=int(received or 0),
            quarantine_bytes=sum(file.stat().st_size for file in aside),
            damaged_blobs=sum(bool(row.fault) for row in every),
            free_bytes=disk.free,
            disk_bytes=disk.total,
            encrypted=self._blobs.keys is not None,
            scrubbed=scrubbing.since(self._blobs),
        )

    # Checking.

    async def fsck(
        self, repair: bool, quick: bool
    ) -> AsyncGenerator[Step | Finding | Summary, None]:
        """See Maintenance."""
        with self._alone("check"):
            work = fsck.fsck(self._blobs, self._aside, repair, quick)
            async with contextlib.aclosing(in_thread(work)) as steps:
                async for step in steps:
                    if isinstance(step, Finding):
                        self._report(step)
                    yield step

    def _report(self, finding: Finding) -> None:
        self._tell(
            "storage.damaged",
            subject=finding.subject,
            what=finding.what,
            done=finding.done,
            harms=list(finding.harms),
        )

    async def scrub(
        self, bytes_per_s: int, older_than_s: float
    ) -> AsyncGenerator[Step | Finding, None]:
        """See Maintenance."""
        with self._alone("scrub"):
            due = await asyncio.to_thread(
                scrubbing.due, self._blobs, time.time() - max(0.0, older_than_s)
            )
            done, total = 0, sum(row.size for row in due)
            pace = scrubbing.Pace(bytes_per_s)
            for row in due:
                stage, start = f"checking {row.sha256[:12]}", done
                yield Step(stage, done, total)
                checking = self._check_one(row, pace)
                async with contextlib.aclosing(checking) as steps:
                    async for step in steps:
                        if isinstance(step, Finding):
                            yield step
                        else:
                            done += step
                            yield Step(stage, done, total)
                done = start + row.size
            yield Step("done", total, total)

    async def _check_one(
        self, row: rows.Row, pace: scrubbing.Pace
    ) -> AsyncGenerator[int | Finding, None]:
        work = with_result(scrubbing.one(self._blobs, self._aside, row))
        async with contextlib.aclosing(in_thread(work)) as steps:
            async for step in steps:
                if isinstance(step, int):
                    yield step
                    await asyncio.sleep(pace.spend(step))
                elif step is not None:
                    self._report(step)
                    yield step

    async def scrub_forever(self, bytes_per_s: int, period_s: float) -> None:
        """Check each blob once in `period_s`, at most so fast, until cancelled."""
        pace = scrubbing.Pace(bytes_per_s)
        while True:
            try:
                due = await asyncio.to_thread(
                    scrubbing.due, self._blobs, time.time() - period_s, limit=1
                )
                for row in due:
                    async for _ in self._check_one(row, pace):
                        pass
            except LLMOSError as exc:  # e.g. a full disk: the next time may find it better
                log.warning("cannot check a blob", extra={"cause": str(exc)})
                due = []
            if not due:
                await asyncio.sleep(_IDLE_S)

    # Collecting.

    async def collect(self, grace_s: float | None) -> Collected:
        """See Maintenance."""
        grace_s = self._grace_s if grace_s is None else grace_s
        if not 0 <= grace_s < math.inf:
            raise InvalidArgument("BAD_GRACE", f"grace_s is {grace_s}; it must be 0 or more.")
        with self._alone("collection"):
            return await asyncio.to_thread(self._collect, grace_s)

    def _collect(self, grace_s: float) -> Collected:
        uploads = self._uploads.collect()
        self._collect_more()
        count, freed = removal.collect(self._blobs, grace_s)
        return Collected(count, freed + self._blobs.cache.trim(), uploads)

    # Backups and keys.

    async def backup(self) -> AsyncGenerator[Step | bytes, None]:
        """See Maintenance."""
        with self._alone("backup"):
            work = backup.backup(self._blobs, self._temporary)
            async with contextlib.aclosing(in_thread(work)) as steps:
                async for step in steps:
                    yield step

    async def restore(self, data: AsyncIterator[bytes]) -> Restored:
        """See Maintenance."""
        with self._alone("restore"):
            pipe = Pipe()
            work = asyncio.ensure_future(
                asyncio.to_thread(restore.restore, self._blobs, cast(IO[bytes], pipe))
            )
            try:
                async for piece in data:
                    while not work.done() and not pipe.offer(piece):
                        await asyncio.sleep(0.005)
                    if work.done():
                        break
                while not work.done() and not pipe.offer(b""):
                    await asyncio.sleep(0.005)
                done = await work
            except BaseException:
                pipe.stop()
                await asyncio.wait([work])
                raise
            self.restored.set()
            return done

    async def rekey(self) -> AsyncGenerator[Rekeyed, None]:
        """See Maintenance."""
        with self._alone("change of keys"):
            async with contextlib.aclosing(in_thread(rekey.rekey(self._blobs))) as steps:
                async for step in steps:
                    yield step
