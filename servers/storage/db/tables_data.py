"""Tables of the data sets: their versions, what these are made of and where they came from."""

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


def _of_version(goes_with_it: bool = True) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["name", "version"],
        ["data_versions.name", "data_versions.version"],
        ondelete="CASCADE" if goes_with_it else None,
    )


data_sets = Table(
    "data_sets",
    metadata,
    Column("name", Key, primary_key=True),
    # Stays when versions are deleted: numbers are never reused.
    Column("last_version", Int, nullable=False),
)
data_versions = Table(
    "data_versions",
    metadata,
    Column("name", Key, ForeignKey("data_sets.name"), primary_key=True),
    Column("version", Int, primary_key=True, autoincrement=False),
    Column("digest", Key, nullable=False),
    Column("format", Int, nullable=False),
    Column("columns", Text, nullable=False),  # JSON: [[name, type, [shape ...]], ...]
    Column("text_column", Text, nullable=False),
    Column("label_column", Text, nullable=False),
    Column("license", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("job", Text, nullable=False),
    Column("step", Text, nullable=False),
    Column("report", Text, nullable=False),  # JSON: see data/report.py
    Column("created", Real, nullable=False),
    UniqueConstraint("name", "digest"),
)
data_files = Table(
    "data_files",
    metadata,
    Column("name", Key, primary_key=True),
    Column("version", Int, primary_key=True, autoincrement=False),
    Column("position", Int, primary_key=True, autoincrement=False),
    Column("split", Text, nullable=False),
    Column("rows", Int, nullable=False),
    Column("sha256", Key, ForeignKey("blobs.sha256"), nullable=False),
    _of_version(),
    Index("data_files_sha256", "sha256"),
)
data_parents = Table(
    "data_parents",
    metadata,
    Column("name", Key, primary_key=True),
    Column("version", Int, primary_key=True, autoincrement=False),
    Column("position", Int, primary_key=True, autoincrement=False),
    Column("parent", Key, nullable=False),  # `name@version`; may have been deleted since
    _of_version(),
    Index("data_parents_parent", "parent"),
)
dataset_leases = Table(  # as version_leases
    "dataset_leases",
    metadata,
    Column("id", Key, primary_key=True),
    Column("name", Key, nullable=False),
    Column("version", Int, nullable=False),
    Column("holder", Text, nullable=False),
    Column("ttl_s", Real, nullable=False),
    Column("boot", Text, nullable=False),
    Column("until", Real, nullable=False),
    Column("request_id", Key, unique=True),
    _of_version(goes_with_it=False),
    Index("dataset_leases_version", "name", "version"),
)
