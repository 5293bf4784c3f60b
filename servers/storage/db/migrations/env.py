"""What Alembic runs: the pending migrations, on the connection and in the transaction given."""

from alembic import context

from llmos.lib import failpoint

context.configure(
    connection=context.config.attributes["connection"],
    transactional_ddl=True,
    on_version_apply=lambda **_: failpoint.hit("migration.step"),
)
with context.begin_transaction():
    context.run_migrations()
