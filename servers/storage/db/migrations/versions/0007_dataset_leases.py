"""Leases on versions of data sets."""

import sqlalchemy as sa
from alembic import op

from llmos.servers.storage.db.tables import Int, Key, Real

revision = "0007_dataset_leases"
down_revision = "0006_registry_more"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "dataset_leases",
        sa.Column("id", Key, primary_key=True),
        sa.Column("name", Key, nullable=False),
        sa.Column("version", Int, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("ttl_s", Real, nullable=False),
        sa.Column("boot", sa.Text, nullable=False),
        sa.Column("until", Real, nullable=False),
        sa.Column("request_id", Key, unique=True),
        sa.ForeignKeyConstraint(
            ["name", "version"], ["data_versions.name", "data_versions.version"]
        ),
    )
    op.create_index("dataset_leases_version", "dataset_leases", ["name", "version"])
