"""The table demo.article: made for ``embedworker demo``, and dropped after it."""

from typing import TYPE_CHECKING

from embedworker.cli.console import note
from embedworker.errors import EmbedworkerError

if TYPE_CHECKING:
    from embedworker.cli.database import Connection
    from embedworker.cli.screen import Screen

__all__ = ["LOCK_TIMEOUT", "MARK", "clean", "make_table"]

MARK = "Sample articles of `embedworker demo`, which drops and creates them again."
LOCK_TIMEOUT = 10.0  # seconds


def make_table(connection: "Connection", screen: "Screen", own_model: str | None) -> None:
    """Make an ordinary table with the sample articles, and have it searchable."""
    from psycopg import ClientCursor, sql

    from embedworker.database.rows import fetch_one
    from embedworker.database.statements import render, statement
    from embedworker.demo.material import articles

    with connection.transaction():
        _drop(connection)
        if not fetch_one(connection.execute(statement("demo_schema_there")))[0]:
            connection.execute(statement("demo_create_schema"))
            connection.execute(render("demo_mark_schema", mark=sql.Literal(MARK)))
        connection.execute(statement("demo_create"))
        connection.execute(render("demo_mark", mark=sql.Literal(MARK)))
        samples = articles()
        connection.execute(
            statement("demo_fill"),
            {
                "langs": [article.lang for article in samples],
                "titles": [article.title for article in samples],
                "contents": [article.content for article in samples],
            },
        )
        name = "demo_enable" if own_model is None else "demo_enable_with"
        enabled = ClientCursor(connection)
        enabled.execute(statement(name), {"model": own_model})
    screen.fact(
        "table", f"demo.article, {len(samples)} articles, made searchable by this one call:"
    )
    screen.sql(enabled.mogrify(statement(name), {"model": own_model}))


def _drop(connection: "Connection") -> None:
    """Remove what the demonstration made, and the schema when nothing of others is in it."""
    from embedworker.database.rows import fetch_one
    from embedworker.database.statements import statement

    connection.execute(statement("demo_disable"))
    connection.execute(statement("demo_drop"))
    if fetch_one(connection.execute(statement("demo_schema_empty"), {"mark": MARK}))[0]:
        connection.execute(statement("demo_drop_schema"))


def clean(url: str) -> None:
    """Drop, on a connection of its own: an interrupt may have left the other one in mid statement.

    What fails is said and stops nothing else that is to be undone; the next demo drops it, too.
    """
    import psycopg

    from embedworker.database.connect import connect

    try:
        with connect(
            url, vectors=False, lock_timeout=LOCK_TIMEOUT, application_name="embedworker demo"
        ) as connection:
            _drop(connection)
    except (psycopg.Error, EmbedworkerError) as error:
        note(f"note: the table demo.article is left: {str(error).strip()}")
