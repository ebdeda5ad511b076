"""Everything embedworker raises on purpose.

    EmbedworkerError
    ├── ConfigurationError       a setting or argument is wrong (exit code 2)
    ├── MissingExtra             a part of the package is not installed
    ├── DatabaseError
    │   ├── ServerUnavailable    no connection could be made
    │   ├── NotMigrated          the schema ``embed`` is missing or of another version
    │   ├── UnsupportedServer    PostgreSQL or pgvector is missing or too old
    │   ├── AccessDenied         the role lacks a right
    │   ├── SourceError          a table cannot be enabled, or is not
    │   ├── QuestionError        a question was not answered
    │   │   ├── NoWorker         none answered in time
    │   │   ├── NoLoopback       the server has no way to the workers
    │   │   ├── QuestionRefused  the model could not embed it
    │   │   └── TooManyQuestions the login has asked as many as it may in a minute
    │   └── EmbeddedServerError  the bundled server could not be started or stopped
    └── ModelError
        ├── ModelNotFound        neither in the cache nor reachable
        ├── ModelRefused         its configuration does not say how to make a vector
        ├── EndpointUnavailable  its endpoint answers nobody at the moment
        └── DimensionMismatch    model and column disagree

Each message says what was wrong, what was expected and what to do, and quotes no question. What
the server refused has its code in ``sqlstate``. ``SearchWarning`` is a warning: the rows were
found, but not quite as they were asked for.
"""

__all__ = [
    "AccessDenied",
    "ConfigurationError",
    "DatabaseError",
    "DimensionMismatch",
    "EmbeddedServerError",
    "EmbedworkerError",
    "EndpointUnavailable",
    "MissingExtra",
    "ModelError",
    "ModelNotFound",
    "ModelRefused",
    "NoLoopback",
    "NoWorker",
    "NotMigrated",
    "QuestionError",
    "QuestionRefused",
    "SearchWarning",
    "ServerUnavailable",
    "SourceError",
    "TooManyQuestions",
    "UnsupportedServer",
]


class EmbedworkerError(Exception):
    """Root of all errors of this package."""

    sqlstate: str | None = None
    """The server's code, where it was the server that refused."""


class SearchWarning(UserWarning):
    """What the server remarks on a search: rows that were not reranked, a question that was cut."""


class ConfigurationError(EmbedworkerError):
    """A setting or an argument is wrong; the command line exits with 2."""


class MissingExtra(EmbedworkerError):
    """A part of the package that is installed on request is missing."""


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


class AccessDenied(DatabaseError):
    """The role lacks a right."""


class QuestionError(DatabaseError):
    """A question was not answered."""


class NoWorker(QuestionError):
    """No worker answered in time."""


class NoLoopback(QuestionError):
    """The server has no way to the workers: dblink or its login is missing."""


class QuestionRefused(QuestionError):
    """The model could not embed the question."""


class TooManyQuestions(QuestionError):
    """The login has asked as many questions as it may in a minute."""


class EmbeddedServerError(DatabaseError):
    """The bundled server could not be started or stopped."""


class ModelError(EmbedworkerError):
    """Something about an embedding model."""


class ModelNotFound(ModelError):
    """The model is neither in the cache nor reachable."""


class ModelRefused(ModelError):
    """The model's configuration does not say how to make a vector."""


class EndpointUnavailable(ModelError):
    """The endpoint of a model answers nobody at the moment; no text is the reason.

    ``seconds`` is how long to wait before the next request.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class DimensionMismatch(ModelError):
    """The model's dimension and the column's differ."""
