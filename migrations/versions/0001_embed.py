"""The schema embed: sources, queues, triggers, questions and the ready table embed.document."""

from worker.database.scripts import run_files

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_files("schema/*.sql", "functions/*.sql", "triggers/*.sql")


def downgrade() -> None:
    run_files("schema/down/0001.sql")
