"""Data sets."""

import sqlalchemy as sa
from alembic import op

from llmos.servers.storage.db.tables import Int, Key, Real

revision = "0003_data"
down_revision = "0002_blobs"


def _key() -> list[sa.Column[str] | sa.Column[int]]:
    return [
        sa.Column("name", Key, primary_key=True),
        sa.Column("version", Int, primary_key=True, autoincrement=False),
        sa.Column("position", Int, primary_key=True, autoincrement=False),
    ]


def _of_version() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["name", "version"], ["data_versions.name", "data_versions.version"], ondelete="CASCADE"
    )


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "data_sets",
        sa.Column("name", Key, primary_key=True),
        sa.Column("last_version", Int, nullable=False),
    )
    op.create_table(
        "data_versions",
        sa.Column("name", Key, sa.ForeignKey("data_sets.name"), primary_key=True),
        sa.Column("version", Int, primary_key=True, autoincrement=False),
        sa.Column("digest", Key, nullable=False),
        sa.Column("format", Int, nullable=False),
        _text("columns"),
        _text("text_column"),
        _text("label_column"),
        _text("license"),
        _text("source"),
        _text("job"),
        _text("step"),
        _text("report"),
        sa.Column("created", Real, nullable=False),
        sa.UniqueConstraint("name", "digest"),
    )
    op.create_table(
        "data_files",
        *_key(),
        _text("split"),
        sa.Column("rows", Int, nullable=False),
        sa.Column("sha256", Key, sa.ForeignKey("blobs.sha256"), nullable=False),
        _of_version(),
    )
    op.create_index("data_files_sha256", "data_files", ["sha256"])
    op.create_table(
        "data_parents",
        *_key(),
        sa.Column("parent", Key, nullable=False),
        _of_version(),
    )
    op.create_index("data_parents_parent", "data_parents", ["parent"])
