"""Everything embedworker raises on purpose.

    EmbedworkerError
    ├── ConfigurationError       a setting or argument is wrong (exit code 2)
    ├── DatabaseError
    │   ├── ServerUnavailable    no connection could be made
    │   ├── NotMigrated          the schema ``embed`` is missing or of another version
    │   ├── UnsupportedServer    PostgreSQL or pgvector is missing or too old
    │   ├── SourceError          a table cannot be enabled, or is not
    │   └── EmbeddedServerError  the bundled server could not be started or stopped
    └── ModelError
        ├── ModelNotFound        neither in the cache nor reachable
        ├── ModelRefused         its configuration does not say how to make a vector
        └── DimensionMismatch    model and column disagree

Each message says what was wrong, what was expected and what to do. ``SearchWarning`` is a warning:
the rows were found, but not quite as they were asked for.
"""

__all__ = [
    "ConfigurationError",
    "DatabaseError",
    "DimensionMismatch",
    "EmbeddedServerError",
    "EmbedworkerError",
    "ModelError",
    "ModelNotFound",
    "ModelRefused",
    "NotMigrated",
    "SearchWarning",
    "ServerUnavailable",
    "SourceError",
    "UnsupportedServer",
]


class EmbedworkerError(Exception):
    """Root of all errors of this package."""


class SearchWarning(UserWarning):
    """What the server remarks on a search: rows that were not reranked, a question that was cut."""


class ConfigurationError(EmbedworkerError):
    """A setting or an argument is wrong; the command line exits with 2."""


class DatabaseError(EmbedworkerError):
    """Something about the database."""


class ServerUnavailable(DatabaseError):
    """No connection could be made."""


class NotMigrated(DatabaseError):
    """The schema ``embed`` is missing or of another version."""


class UnsupportedServer(DatabaseError):
    """PostgreSQL or pgvector is missing or too old."""


class SourceError(DatabaseError):
    """A table cannot be enabled, or is not enabled."""


class EmbeddedServerError(DatabaseError):
    """The bundled server could not be started or stopped."""


class ModelError(EmbedworkerError):
    """Something about an embedding model."""


class ModelNotFound(ModelError):
    """The model is neither in the cache nor reachable."""


class ModelRefused(ModelError):
    """The model's configuration does not say how to make a vector."""


class DimensionMismatch(ModelError):
    """The model's dimension and the column's differ."""
