"""The whole store compared with itself: database, rows, files, digests."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterator
from pathlib import Path

from sqlalchemy import text

from llmos.servers.storage.blobs import rows
from llmos.servers.storage.blobs.placement import unlink
from llmos.servers.storage.blobs.store import SEALED, Blobs
from llmos.servers.storage.upkeep import verify
from llmos.servers.storage.upkeep.base import Finding, Kind, Step, Summary


def fsck(
    blobs: Blobs, aside: Path, repair: bool, quick: bool
) -> Iterator[Step | Finding | Summary]:
    """See Maintenance.fsck. aside: the folder of the quarantine."""
    found: list[Finding] = []

    def tell(finding: Finding) -> Finding:
        found.append(finding)
        return finding

    yield Step("checking the database")
    yield from (tell(finding) for finding in database(blobs))
    yield Step("comparing files and rows")
    yield from (tell(finding) for finding in leftovers(blobs, repair))
    with blobs.db.read() as sql:
        every = rows.every(sql)
    every.sort(key=lambda row: (row.form, row.sha256))  # sources before what is made of them
    total, done = sum(row.size for row in every), 0
    for row in every:
        stage, start = f"checking {row.sha256[:12]}", done
        yield Step(stage, done, total)
        work = _one(blobs, aside, row, repair, quick)
        while True:
            try:
                done += next(work)
            except StopIteration as end:
                finding = end.value
                break
            yield Step(stage, done, total)
        done = start + row.size
        if finding is not None:
            yield tell(finding)
    checked = 0 if quick else total
    aside_now = sum(f.done.startswith("quarantined") for f in found)
    repaired = sum(bool(f.done) for f in found) - aside_now
    yield Summary(len(every), checked, len(found), repaired, aside_now)


def _one(
    blobs: Blobs, aside: Path, row: rows.Row, repair: bool, quick: bool
) -> Generator[int, None, Finding | None]:
    now = time.time()
    with blobs.db.read() as sql:
        current = rows.get(sql, row.sha256)
    if current is None:
        return None
    row = current
    if not row.fault:
        finding = yield from verify.check(blobs, row, quick)
        if finding is None:
            if not quick:
                verify.sound(blobs, row, now)
            return None
    else:
        with blobs.db.read() as sql:
            harms = tuple(rows.harms(sql, row.sha256))
        kind = Kind.MISSING if row.fault.endswith("gone") else Kind.DAMAGED
        finding = Finding(kind, row.sha256, row.fault, "", harms)
    if not repair or _deleted(blobs, row):
        return None if _deleted(blobs, row) else finding
    if verify.heal(blobs, row):
        return dataclasses.replace(finding, done="made again from a sound copy")
    verify.quarantine(blobs, aside, row, finding.what)
    return dataclasses.replace(finding, done="quarantined: bring in the same bytes to heal it")


def _deleted(blobs: Blobs, row: rows.Row) -> bool:
    with blobs.db.read() as sql:
        return rows.get(sql, row.sha256) is None


def database(blobs: Blobs) -> Iterator[Finding]:
    """Tell what the database finds wrong with itself."""
    if not blobs.db.is_sqlite:
        return  # PostgreSQL keeps its own constraints, and has checksums for its files
    with blobs.db.read() as sql:
        for (said,) in sql.execute(text("PRAGMA integrity_check")):
            if said != "ok":
                yield Finding(Kind.DATABASE, "registry.db", str(said))
        for row in sql.execute(text("PRAGMA foreign_key_check")):
            what = f"row {row[1]} refers to a row of {row[2]} that is not there"
            yield Finding(Kind.DATABASE, str(row[0]), what)


def leftovers(blobs: Blobs, repair: bool) -> list[Finding]:
    """Find files that no row knows; with repair, remove them."""
    with blobs.db.lock:  # nothing is placed meanwhile: a file comes before its row
        with blobs.db.read() as sql:
            expected = {
                row.sha256 + (SEALED if row.wrapped_key is not None else "")
                for row in rows.every(sql)
                if row.form == rows.FILE
            }
        strange = [f for f in sorted(blobs.folder.glob("*/*")) if f.name not in expected]
        if repair:
            unlink(strange)
    done = "removed" if repair else ""
    return [Finding(Kind.LEFTOVER, f.name, "no row knows this file", done) for f in strange]
