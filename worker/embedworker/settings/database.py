"""Where the database is."""

from pydantic import AliasChoices, BaseModel, Field

from embedworker.settings.values import ENVIRONMENT_PREFIX, Folder

__all__ = ["DatabaseSettings"]


class DatabaseSettings(BaseModel):
    """The server, the ways to it and the folder of the embedded one."""

    database_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices(f"{ENVIRONMENT_PREFIX}DATABASE_URL", "DATABASE_URL"),
        description="Where PostgreSQL is: postgresql://…, postgresql+psycopg://… or key=value. Not "
        "set: the embedded server. DATABASE_URL is used when this variable is not set. `run`, "
        "`status` and `doctor` take several, one per line",
    )
    databases: Folder | None = Field(
        default=None,
        description="File with one database URL per line, for `run`, `status` and `doctor`; a line "
        "with # is a comment. `run` reads it again at SIGHUP",
    )
    listen_url: str | None = Field(
        default=None,
        description="Direct connection for LISTEN and for building indexes when the database URL "
        "goes through a transaction pooler; not set: the database URL",
    )
    loopback_host: str | None = Field(
        default=None,
        description="Host under which the database server reaches itself for embed.query; not set: "
        "found by `migrate`",
    )
    primary_host: str | None = Field(
        default=None,
        description="Hosts under which standbys reach the primary for embed.query, as in a URL: "
        "db1,db2:5433?sslmode=verify-full; not set: as `migrate` stored before",
    )
    data_dir: Folder | None = Field(
        default=None,
        description="Folder of the embedded server; not set: embedworker in the user's data folder "
        "(as root: below /var/lib/embedworker)",
    )
