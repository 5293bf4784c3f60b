"""Models, versions and blobs, as in the first LLM OS; its `registry.db` is taken as it is."""

import sqlalchemy as sa
from alembic import op

from llmos.servers.storage.db.tables import Int, Key, Real

revision = "0001_registry"
down_revision = None


def _of_version() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["name", "version"], ["versions.name", "versions.version"], ondelete="CASCADE"
    )


def _of(table: str, *columns: sa.schema.SchemaItem) -> None:
    """Create a list of things of a version."""
    op.create_table(
        table,
        sa.Column("name", Key, primary_key=True),
        sa.Column("version", Int, primary_key=True, autoincrement=False),
        sa.Column("position", Int, primary_key=True, autoincrement=False),
        *columns,
        _of_version(),
    )


def upgrade() -> None:
    """Create the tables."""
    if sa.inspect(op.get_bind()).has_table("versions"):
        return
    op.create_table(
        "blobs",
        sa.Column("sha256", Key, primary_key=True),
        sa.Column("size", Int, nullable=False),
        sa.Column("touched", Real, nullable=False),
    )
    op.create_index("blobs_size", "blobs", ["size"])
    op.create_table(
        "models",
        sa.Column("name", Key, primary_key=True),
        sa.Column("last_version", Int, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("name", Key, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("version", Int, primary_key=True, autoincrement=False),
        sa.Column("digest", Key, nullable=False),
        sa.Column("format", Int, nullable=False),
        sa.Column("task", Int, nullable=False),
        sa.Column("architecture", sa.Text, nullable=False),
        sa.Column("parameters", Int, nullable=False),
        sa.Column("dtype", sa.Text, nullable=False),
        sa.Column("context_length", Int, nullable=False),
        sa.Column("license", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("created", Real, nullable=False),
        sa.UniqueConstraint("name", "digest"),
    )
    _of(
        "files",
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("sha256", Key, sa.ForeignKey("blobs.sha256"), nullable=False),
    )
    op.create_index("files_sha256", "files", ["sha256"])
    _of("parents", sa.Column("parent", Key, nullable=False))
    op.create_index("parents_parent", "parents", ["parent"])
    _of(
        "metrics",
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("value", Real),
        sa.Column("unit", sa.Text, nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("request_id", Key, primary_key=True),
        sa.Column("name", Key, nullable=False),
        sa.Column("version", Int, nullable=False),
        _of_version(),
    )
    op.create_index("requests_version", "requests", ["name", "version"])
