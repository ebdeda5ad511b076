"""What the questions of a model have in common; see sql/schema/004_question_offset.sql."""

from embedworker.database.scripts import migrating_connection, run_files

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_files(migrating_connection(), "schema/004_*.sql")


def downgrade() -> None:
    """Nothing: ``embedworker migrate --down`` goes on to 0001, which takes everything out."""
