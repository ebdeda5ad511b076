"""What the first real day asked of the tables; see the sections of its file."""

from embedworker.database.scripts import migrating_connection, run_files

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_files(migrating_connection(), "schema/002_first_day.sql")


def downgrade() -> None:
    """Nothing: ``embedworker migrate --down`` goes on to 0001, which takes everything out."""
