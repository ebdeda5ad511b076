"""The operation of a migration that sets the database up."""

import warnings
from typing import Any

from django.db.migrations.operations.base import Operation

from embedworker.database.install import migrate
from embedworker.errors import ConfigurationError

__all__ = ["InstallEmbedding"]


class InstallEmbedding(Operation):
    """Does what ``embedworker migrate`` does, in every database that is made by the migrations.

    Write it before the first ``AddIndex(… Embedding …)``. It is committed at once, over a
    connection of its own, and stays when the migration fails. Its reverse does nothing, because
    other tables can be searchable: ``embedworker migrate --down`` takes the schema out.

    Raises:
        ConfigurationError: the database is none of PostgreSQL by psycopg 3.
    """

    reversible = True
    reduces_to_sql = False

    def __init__(self, model: str | None = None) -> None:
        self.model = model

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change no model."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Create the schema embed, or bring it up to date."""
        database = schema_editor.connection
        if database.vendor != "postgresql":
            raise ConfigurationError(
                f"the database {database.alias!r} is {database.vendor}; embedworker needs "
                "PostgreSQL, with psycopg 3"
            )
        if schema_editor.collect_sql:
            schema_editor.execute("-- Before what follows, run: embedworker migrate", None)
            return
        database.ensure_connection()
        for remark in migrate(database.connection, model=self.model):
            warnings.warn(remark, stacklevel=2)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Leave the schema."""

    def describe(self) -> str:
        """Say what it does."""
        return "Set the database up for embedworker"

    @property
    def migration_name_fragment(self) -> str:
        """Name the migration."""
        return "install_embedding"
