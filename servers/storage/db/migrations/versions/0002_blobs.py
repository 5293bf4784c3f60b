"""Blobs made of pieces of others, sealed blobs, tensors, uploads, and what upkeep found."""

import sqlalchemy as sa
from alembic import op

from llmos.servers.storage.db.tables import Int, Key, Real

revision = "0002_blobs"
down_revision = "0001_registry"


def _of_blob() -> sa.ForeignKey:
    return sa.ForeignKey("blobs.sha256", ondelete="CASCADE")


def upgrade() -> None:
    """Create the tables."""
    for column in (
        sa.Column("form", Int, nullable=False, server_default="0"),
        sa.Column("wrapped_key", sa.LargeBinary),
        sa.Column("checked", Real, nullable=False, server_default="0"),
        sa.Column("fault", sa.Text, nullable=False, server_default=""),
    ):
        op.add_column("blobs", column)
    op.create_table(
        "pieces",
        sa.Column("sha256", Key, _of_blob(), primary_key=True),
        sa.Column("position", Int, primary_key=True, autoincrement=False),
        sa.Column("source", Key, sa.ForeignKey("blobs.sha256"), nullable=False),
        sa.Column("start", Int, nullable=False),
        sa.Column("length", Int, nullable=False),
    )
    op.create_index("pieces_source", "pieces", ["source"])
    op.create_table(
        "tensors",
        sa.Column("digest", Key, primary_key=True),
        sa.Column("sha256", Key, _of_blob(), nullable=False),
        sa.Column("start", Int, nullable=False),
        sa.Column("length", Int, nullable=False),
    )
    op.create_index("tensors_sha256", "tensors", ["sha256"])
    op.create_table(
        "uploads",
        sa.Column("id", Key, primary_key=True),
        sa.Column("tenant", Key, nullable=False),
        sa.Column("sha256", Key, nullable=False),
        sa.Column("size", Int, nullable=False),
        sa.Column("received", Int, nullable=False),
        sa.Column("expires", Real, nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary),
    )
    op.create_index("uploads_sha256", "uploads", ["sha256"])
    op.create_table(
        "upkeep",
        sa.Column("name", Key, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
