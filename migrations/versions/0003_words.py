"""Words as terms, and changes of the model of a table; see the sections of its files."""

from embedworker.database.scripts import migrating_connection, run_files

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_files(migrating_connection(), "schema/003_*.sql")


def downgrade() -> None:
    """Nothing: ``embedworker migrate --down`` goes on to 0001, which takes everything out."""
