"""${message}"""

from embedworker.database.scripts import migrating_connection, run_files

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_files(migrating_connection(), "schema/")


def downgrade() -> None:
    raise RuntimeError("say here how to go back, or why not")
