"""What outlives the memory server about the blocks: a table of runs (SQLite).

It is a cache's: after a power failure its last rows may be missing, and bytes without a row are
thrown away.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from llmos.lib.errors import FailedPrecondition
from llmos.servers.memory.prefix.run import Run, Space

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  model TEXT NOT NULL, layout TEXT NOT NULL, tenant TEXT NOT NULL,
  keys BLOB NOT NULL, key_bytes INTEGER NOT NULL, block_bytes INTEGER NOT NULL,
  depth INTEGER NOT NULL, cost_s REAL NOT NULL, size INTEGER NOT NULL,
  buffer TEXT NOT NULL, token BLOB NOT NULL,
  on_disk INTEGER NOT NULL, checksum INTEGER NOT NULL, used REAL NOT NULL
) STRICT
"""
_COLUMNS = (
    "id, model, layout, tenant, keys, key_bytes, block_bytes, depth, cost_s, size, "
    "buffer, token, on_disk, checksum, used"
)


class Catalog:
    """The table. A file that is not one of ours, or is damaged, is replaced: it is a cache."""

    def __init__(self, path: Path) -> None:
        """Open or make it. Raises FailedPrecondition READ_ONLY."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                self._db = _open(path)
            except sqlite3.DatabaseError:
                for file in path.parent.glob(path.name + "*"):
                    file.unlink()
                self._db = _open(path)
        except (OSError, sqlite3.OperationalError) as exc:
            raise FailedPrecondition(
                "READ_ONLY", f"Cannot write {path} ({exc}); make its directory writable."
            ) from exc

    def runs(self) -> Iterator[Run]:
        """Yield all runs, least recently used first."""
        for row in self._db.execute(f"SELECT {_COLUMNS} FROM runs ORDER BY used, depth DESC"):
            id, model, layout, tenant, keys, step, *rest = row
            block_bytes, depth, cost_s, size, buffer, token, on_disk, checksum, used = rest
            yield Run(
                id,
                Space(model, layout, tenant),
                [keys[i : i + step] for i in range(0, len(keys), step)],
                block_bytes,
                depth,
                cost_s,
                size,
                buffer,
                token,
                bool(on_disk),
                checksum,
                used=used,
            )

    def add(self, run: Run) -> None:
        """Write a new run and set its id, which is never reused."""
        what = (*run.space, b"".join(run.keys), len(run.keys[0]), run.block_bytes, run.depth)
        row = (*what, run.cost_s, run.size, run.buffer, run.token, 0, 0, run.used)
        columns = _COLUMNS.removeprefix("id, ")
        marks = ", ".join("?" * len(row))
        cursor = self._db.execute(f"INSERT INTO runs ({columns}) VALUES ({marks})", row)
        run.id = int(cursor.lastrowid or 0)

    def save(self, run: Run) -> None:
        """Write where a run's bytes are now."""
        self._db.execute(
            "UPDATE runs SET buffer = ?, token = ?, on_disk = ?, checksum = ?, used = ? "
            "WHERE id = ?",
            (run.buffer, run.token, run.on_disk, run.checksum, run.used, run.id),
        )

    def remove(self, run: Run) -> None:
        """Forget a run."""
        self._db.execute("DELETE FROM runs WHERE id = ?", (run.id,))

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(
            sqlite3.Error
        ):  # what is not folded back is read at the next start
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        path.chmod(0o600)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError("of another version")
        db.execute(_SCHEMA)
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("SELECT count(*) FROM runs").fetchone()
    except BaseException:
        db.close()
        raise
    return db
