"""What the errors of SQLite and PostgreSQL mean."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from llmos.lib.errors import DataLoss, FailedPrecondition, Internal, LLMOSError, Unavailable
from llmos.servers.storage.disk import disk_full, is_full, read_only


def convert(exc: DBAPIError, place: str, path: Path | None) -> LLMOSError:
    """Return the error for one of the driver's. path: of the SQLite file, None = PostgreSQL.

    DISK_FULL, READ_ONLY, REGISTRY_DAMAGED, DATABASE_UNREACHABLE, else Internal BUG.
    """
    if path is not None:
        return _sqlite(exc.orig, path)
    return _postgres(exc, place)


def _sqlite(exc: BaseException | None, path: Path) -> LLMOSError:
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    # Where SQLite cannot grow the file that it maps (-shm), it says I/O error.
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and is_full(path.parent)):
        return disk_full(path.parent)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return read_only(path, str(exc))
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR):
        return DataLoss(
            "REGISTRY_DAMAGED", f"{path} cannot be read ({exc}); restore it from a backup."
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable(
            "DATABASE_UNREACHABLE",
            f"Another program keeps {path} locked; close it and try again.",
            retry_after_s=1,
        )
    return Internal("BUG", f"{path}: {exc}")


def _postgres(exc: DBAPIError, place: str) -> LLMOSError:
    state = str(getattr(exc.orig, "sqlstate", None) or "")
    why = " ".join(str(exc.orig).split())[:200]
    if state in ("53100", "54000"):  # disk full, a program limit
        return disk_full(place, why)
    if state in ("25006", "42501"):  # a standby, or a user who may not
        return FailedPrecondition(
            "READ_ONLY", f"Cannot write {place} ({why}); use a database whose owner you are."
        )
    if state in ("XX001", "XX002", "58030"):  # data or index damaged, I/O error
        return DataLoss(
            "REGISTRY_DAMAGED", f"{place} cannot be read ({why}); restore it from a backup."
        )
    # No state: the connection is the trouble. 08 connection, 28 password, 3D no such database,
    # 53 resources, 57 shutting down.
    if exc.connection_invalidated or state[:2] in ("", "08", "28", "3D", "53", "57"):
        return Unavailable(
            "DATABASE_UNREACHABLE",
            f"{place} does not answer ({why}); check that it runs and the URL is right.",
            retry_after_s=1,
        )
    return Internal("BUG", f"{place}: {why}")
