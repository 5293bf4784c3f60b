"""A real PostgreSQL of Debian's package for tests: one server per session, one database per test.

initdb and the server refuse to run as root; then both run as the package's user `postgres`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

# The tests kill the storage server, never this one: what it does for power losses takes only time.
_QUICK = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")


def programs() -> Path | None:
    """Return the folder of initdb and postgres, None when there is no PostgreSQL."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = str(debian[-1]) if debian else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class Postgres:
    """A running server that only this user's processes reach, by a Unix socket."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self.folder = folder
        self._bin = bin_folder
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._as = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(folder, "postgres", "postgres")
        folder.chmod(0o755)  # the socket in it is for others, too
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the cluster when there is none, start the server and wait until it answers."""
        data = self.folder / "data"
        if not data.exists():
            made = [str(self._bin / "initdb"), "-D", str(data), "-U", "llmos", "-A", "trust"]
            subprocess.run(
                [*made, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
                check=True,
                capture_output=True,
                timeout=120,
                cwd="/",
                **self._as,
            )
        settings = [word for setting in _QUICK for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            where = ["-D", str(data), "-k", str(self.folder), "-c", "listen_addresses="]
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), *where, *settings],
                stdout=log,
                stderr=log,
                cwd="/",
                **self._as,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.run("SELECT 1")
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log_text = (self.folder / "log").read_text()
                    raise RuntimeError(f"PostgreSQL did not start: {log_text}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """End the server at once; clients are cut off."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def run(self, statement: str, database: str = "postgres") -> None:
        """Run a statement outside of transactions."""
        with psycopg.connect(
            host=str(self.folder), user="llmos", dbname=database, autocommit=True
        ) as sql:
            sql.execute(statement.encode())

    def url(self, database: str) -> str:
        """Return the URL of a database, as users write it."""
        return f"postgresql://llmos@/{database}?host={self.folder}"

    @contextmanager
    def database(self, template: str = "template0") -> Iterator[str]:
        """Make a copy of a database, give its URL, and drop it at the end."""
        name = f"t{uuid.uuid4().hex}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        try:
            yield self.url(name)
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def server() -> Iterator[Postgres | None]:
    """Run a server; None where PostgreSQL is not installed."""
    found = programs()
    if found is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="llmos-pg-") as folder:  # short, as sockets' paths are
        postgres = Postgres(Path(folder), found)
        try:
            postgres.start()
            yield postgres
        finally:
            postgres.stop()
