"""Which digests were there before: on disk, so that memory does not grow with the data."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmos.servers.storage.disk import disk_full

_CACHE_KIB = 32 << 10
_SMALL = 200_000  # digests in memory, about 20 MB
_ASKED = 4096  # digests in one query


class Scratch:
    """A temporary SQLite file of one import. Of one thread; what is in it dies with it."""

    def __init__(self, folder: Path) -> None:
        """Make the file in a folder that somebody else removes."""
        self._folder = folder
        self.sql = sqlite3.connect(folder / "scratch.db", isolation_level=None)
        for pragma in (
            "journal_mode = OFF",
            "synchronous = OFF",
            "locking_mode = EXCLUSIVE",
            f"cache_size = -{_CACHE_KIB}",
        ):
            self.sql.execute(f"PRAGMA {pragma}")

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn a full disk into DISK_FULL."""
        try:
            yield
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                raise disk_full(self._folder) from exc
            raise

    def close(self) -> None:
        """Close the file."""
        self.sql.close()


class Seen:
    """A set of digests: in memory while it is small, then in a scratch file."""

    def __init__(self, scratch: Scratch, name: str) -> None:
        """Make an empty set."""
        self._scratch = scratch
        self._name = name
        self._small: set[bytes] | None = set()

    def add(self, digests: Sequence[bytes]) -> list[bool]:
        """Add them in order; return for each whether it was there before."""
        before = self._stored(digests)
        new: set[bytes] = set()
        found = []
        for digest in digests:
            found.append(digest in before or digest in new)
            new.add(digest)
        new -= before
        if self._small is not None:
            self._small |= new
            if len(self._small) <= _SMALL:
                return found
            new, self._small = self._small, None
            self._scratch.sql.execute(
                f"CREATE TABLE {self._name} (digest BLOB PRIMARY KEY) WITHOUT ROWID"
            )
        with self._scratch.errors():
            rows = [(digest,) for digest in sorted(new)]
            self._scratch.sql.execute("BEGIN")
            self._scratch.sql.executemany(f"INSERT INTO {self._name} VALUES (?)", rows)
            self._scratch.sql.execute("COMMIT")
        return found

    def _stored(self, digests: Sequence[bytes]) -> set[bytes]:
        """Return which of these are there."""
        if self._small is not None:
            return self._small.intersection(digests)
        found: set[bytes] = set()
        with self._scratch.errors():
            for at in range(0, len(digests), _ASKED):
                some = digests[at : at + _ASKED]
                marks = ",".join("?" * len(some))
                query = f"SELECT digest FROM {self._name} WHERE digest IN ({marks})"
                found.update(digest for (digest,) in self._scratch.sql.execute(query, some))
        return found


class Strata:
    """Places and labels of rows, to cut every label's rows at the same shares."""

    def __init__(self, scratch: Scratch) -> None:
        """Make it empty."""
        self._scratch = scratch
        scratch.sql.execute("CREATE TABLE strata (label TEXT, place INTEGER)")

    def add(self, labels: Sequence[str], places: Sequence[int]) -> None:
        """Add rows. places: 0 to 2**63 - 1."""
        with self._scratch.errors():
            self._scratch.sql.execute("BEGIN")
            self._scratch.sql.executemany(
                "INSERT INTO strata VALUES (?, ?)", zip(labels, places, strict=True)
            )
            self._scratch.sql.execute("COMMIT")

    def cuts(self, ends: Sequence[float]) -> dict[str, list[int]]:
        """Return for each label the first place that is past each of these shares of its rows."""
        sql = self._scratch.sql
        with self._scratch.errors():
            sql.execute("CREATE INDEX by_place ON strata (label, place)")
            counts = sql.execute("SELECT label, COUNT(*) FROM strata GROUP BY label").fetchall()
            cuts: dict[str, list[int]] = {}
            for label, count in counts:
                cuts[label] = []
                for end in ends:
                    row = sql.execute(
                        "SELECT place FROM strata WHERE label = ? ORDER BY place LIMIT 1 OFFSET ?",
                        (label, round(count * end)),
                    ).fetchone()
                    cuts[label].append(row[0] if row else 1 << 63)
        return cuts
