"""Alembic's environment: run by ``embedworker.database.migrate``, which hands over a connection."""

from alembic import context

connection = context.config.attributes["connection"]

context.configure(
    connection=connection,
    version_table="schema_version",
    version_table_schema="embed",
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
