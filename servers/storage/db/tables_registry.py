"""Tables of the models: their versions, what these are made of and where they came from."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from llmos.servers.storage.db.tables import Int, Key, Real, metadata


def _of_version(goes_with_it: bool = True) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["name", "version"],
        ["versions.name", "versions.version"],
        ondelete="CASCADE" if goes_with_it else None,
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
    Column("tokenizer", Text, nullable=False, server_default=""),
    Column("chat_template", Text, nullable=False, server_default=""),
    Column("code", Text, nullable=False, server_default=""),
    UniqueConstraint("name", "digest"),
)
# In the order of listings, with and without a filter.
Index("versions_newest", versions.c.name, versions.c.version.desc())
Index("versions_task", versions.c.task, versions.c.name, versions.c.version.desc())
Index("versions_format", versions.c.format, versions.c.name, versions.c.version.desc())
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
datasets_used = Table(
    "datasets_used",
    metadata,
    Column("name", Key, primary_key=True),
    Column("version", Int, primary_key=True, autoincrement=False),
    Column("position", Int, primary_key=True, autoincrement=False),
    Column("dataset", Key, nullable=False),  # `name@version`; may have been deleted since
    _of_version(),
    Index("datasets_used_dataset", "dataset"),
)
tags = Table(
    "tags",
    metadata,
    Column("name", Key, primary_key=True),
    Column("version", Int, primary_key=True, autoincrement=False),
    Column("key", Key, primary_key=True),
    Column("value", Key, nullable=False),
    _of_version(),
    Index("tags_key_value", "key", "value"),
)
signatures = Table(
    "signatures",
    metadata,
    Column("name", Key, primary_key=True),
    Column("version", Int, primary_key=True, autoincrement=False),
    Column("key_sha256", Key, primary_key=True),  # of the public key
    Column("bundle", LargeBinary, nullable=False),
    Column("added", Real, nullable=False),  # Unix time
    _of_version(),
)
aliases = Table(
    "aliases",
    metadata,
    Column("name", Key, primary_key=True),
    Column("alias", Key, primary_key=True),
    Column("version", Int, nullable=False),
    Column("revision", Int, nullable=False),  # of its newest move
    _of_version(goes_with_it=False),
    Index("aliases_version", "name", "version"),
)
alias_moves = Table(  # never deleted
    "alias_moves",
    metadata,
    Column("revision", Int, primary_key=True, autoincrement=False),
    Column("name", Key, nullable=False),
    Column("alias", Key, nullable=False),
    Column("kind", Int, nullable=False),  # as in the proto
    Column("version", Int, nullable=False),  # 0 = nowhere
    Column("previous", Int, nullable=False),  # where it pointed before; 0 = nowhere
    Column("replaced", Int, nullable=False),  # the alias's revision before; 0 = there was none
    Column("back", Int, nullable=False),  # revision whose version a rollback restores; 0 = none
    Column("actor", Text, nullable=False),
    Column("at", Real, nullable=False),  # Unix time
    Index("alias_moves_alias", "name", "alias", "revision"),
)
version_leases = Table(
    "version_leases",
    metadata,
    Column("id", Key, primary_key=True),
    Column("name", Key, nullable=False),
    Column("version", Int, nullable=False),
    Column("holder", Text, nullable=False),
    Column("ttl_s", Real, nullable=False),
    Column("boot", Text, nullable=False),  # boot of the host whose clock `until` is of
    Column("until", Real, nullable=False),  # seconds since that boot
    Column("request_id", Key, unique=True),
    _of_version(goes_with_it=False),
    Index("version_leases_version", "name", "version"),
)
