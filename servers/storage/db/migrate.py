"""Brings a database's schema up to date: `migrations/versions/*.py`, run by Alembic.

All pending migrations run in one transaction: a crash in the middle leaves the old schema. A file
is called like its revision, and their order by name is the order they run in.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from llmos.lib import failpoint
from llmos.lib.errors import FailedPrecondition

_FOLDER = Path(__file__).parent / "migrations"
# SQLite's own number, which the first LLM OS looks at: it leaves later databases alone.
_USER_VERSION = 2


def is_current(sql: Connection, place: str) -> bool:
    """Return whether nothing is to be done. Raises FailedPrecondition NEWER_STATE."""
    if sql.dialect.name == "sqlite":
        found = sql.execute(text("PRAGMA user_version")).scalar_one()
        if found > _USER_VERSION:
            raise _newer(place, f"number {found}")
    if not inspect(sql).has_table("alembic_version"):
        return False
    revision = sql.execute(text("SELECT version_num FROM alembic_version")).scalar()
    known = sorted(file.stem for file in (_FOLDER / "versions").glob("[0-9]*.py"))
    if revision is not None and revision not in known:
        raise _newer(place, revision)
    return revision == known[-1]


def _newer(place: str, revision: str) -> FailedPrecondition:
    return FailedPrecondition(
        "NEWER_STATE",
        f"{place} was written by a newer LLM OS (its schema, {revision}, is not known here); "
        "upgrade, or name another state directory or database.",
    )


def upgrade(sql: Connection) -> None:
    """Run what is pending, in the caller's transaction, where foreign keys must be off."""
    # Needed at the first start and after an upgrade only.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = sql
    failpoint.hit("migration.begun")
    command.upgrade(config, "head")
    failpoint.hit("migration.run")
    if sql.dialect.name == "sqlite":
        if broken := sql.execute(text("PRAGMA foreign_key_check")).first():
            raise RuntimeError(f"a migration broke a reference of table {broken[0]}")
        sql.execute(text(f"PRAGMA user_version = {_USER_VERSION}"))
