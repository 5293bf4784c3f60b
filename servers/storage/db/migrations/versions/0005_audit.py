"""The audit log and quotas."""

import sqlalchemy as sa
from alembic import op

from llmos.servers.storage.db.tables import Int, Key

revision = "0005_audit"
down_revision = "0004_state"


def upgrade() -> None:
    """Create the tables; charge what is stored already to the tenant `local`."""
    op.create_table(
        "audit_log",
        sa.Column("seq", Int, primary_key=True, autoincrement=False),
        sa.Column("at_ms", Int, nullable=False),
        sa.Column("actor", Key, nullable=False),
        sa.Column("action", Key, nullable=False),
        sa.Column("subject", Key, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("previous", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
    )
    op.create_index("audit_log_subject", "audit_log", ["subject"])
    op.create_index("audit_log_action", "audit_log", ["action"])
    op.create_table(
        "quotas",
        sa.Column("tenant", Key, primary_key=True),
        sa.Column("limit_bytes", Int, nullable=False),
        sa.Column("limit_items", Int, nullable=False),
    )
    op.create_table(
        "quota_usage",
        sa.Column("tenant", Key, primary_key=True),
        sa.Column("kind", Key, primary_key=True),
        sa.Column("bytes", Int, nullable=False),
        sa.Column("items", Int, nullable=False),
    )
    op.create_table(
        "quota_charges",
        sa.Column("kind", Key, primary_key=True),
        sa.Column("subject", Key, primary_key=True),
        sa.Column("tenant", Key, nullable=False),
        sa.Column("bytes", Int, nullable=False),
    )
    op.execute(
        "INSERT INTO quota_charges (kind, subject, tenant, bytes) "
        "SELECT 'model', f.name || '@' || f.version, 'local', SUM(b.size) "
        "FROM files f JOIN blobs b ON b.sha256 = f.sha256 GROUP BY f.name, f.version"
    )
    op.execute(
        "INSERT INTO quota_usage (tenant, kind, bytes, items) "
        "SELECT 'local', 'model', SUM(bytes), COUNT(*) FROM quota_charges HAVING COUNT(*) > 0"
    )
