"""The tables of the schema embed: sources, questions and the ready table embed.document.

The file is frozen: a change of a table belongs to a migration of its own.
"""

from embedworker.database.scripts import migrating_connection, run_files

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_files(migrating_connection(), "schema/001_tables.sql")


def downgrade() -> None:
    run_files(migrating_connection(), "schema/down/0001.sql")
