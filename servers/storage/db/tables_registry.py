"""Tables of the models: their versions, what these are made of and where they came from."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Table,
    Text,
    UniqueConstraint,
)

from llmos.servers.storage.db.tables import Int, Key, Real, metadata


def _of_version() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["name", "version"], ["versions.name", "versions.version"], ondelete="CASCADE"
    )


models = Table(
    "models",
    metadata,
    Column("name", Key, primary_key=True),
    # Stays when versions are deleted: numbers are never reused.
    Column("last_version", Int, nullable=False),
)
versions = Table(
    "versions",
    metadata,
    Column("name", Key, ForeignKey("models.name"), primary_key=True),
    Column("version", Int, primary_key=True, autoincrement=False),
    Column("digest", Key, nullable=False),
    Column("format", Int, nullable=False),
    Column("task", Int, nullable=False),
    Column("architecture", Text, nullable=False),
    Column("parameters", Int, nullable=False),
    Column("dtype", Text, nullable=False),
    Column("context_length", Int, nullable=False),
    Column("license", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("job", Text, nullable=False),
    Column("step", Text, nullable=False),
    Column("created", Real, nullable=False),
    UniqueConstraint("name", "digest"),
)
files = Table(
    "files",
    metadata,
    Column("name", Key, primary_key=True),
    Column("version", Int, primary_key=True, autoincrement=False),
    Column("position", Int, primary_key=True, autoincrement=False),
    Column("file", Text, nullable=False),
    Column("sha256", Key, ForeignKey("blobs.sha256"), nullable=False),
    _of_version(),
    Index("files_sha256", "sha256"),
)
parents = Table(
    "parents",
    metadata,
    Column("name", Key, primary_key=True),
    Column("version", Int, primary_key=True, autoincrement=False),
    Column("position", Int, primary_key=True, autoincrement=False),
    Column("parent", Key, nullable=False),  # `name@version`; may have been deleted since
    _of_version(),
    Index("parents_parent", "parent"),
)
metrics = Table(
    "metrics",
    metadata,
    Column("name", Key, primary_key=True),
    Column("version", Int, primary_key=True, autoincrement=False),
    Column("position", Int, primary_key=True, autoincrement=False),
    Column("metric", Text, nullable=False),
    Column("value", Real),  # NULL is NaN
    Column("unit", Text, nullable=False),
    _of_version(),
)
requests = Table(
    "requests",
    metadata,
    Column("request_id", Key, primary_key=True),
    Column("name", Key, nullable=False),
    Column("version", Int, nullable=False),
    _of_version(),
    Index("requests_version", "name", "version"),
)
