"""The model of a table is changed, whatever the names of the table and of its column are."""

import pytest
from fix_drain import Connection, Drain
from fix_switch import OTHER, one
from psycopg import sql

from embedworker.model.catalog import TESTING_MODEL
from embedworker.model.testing import hash_vector


@pytest.mark.parametrize("into", [False, True], ids=["table", "column"])
@pytest.mark.parametrize("name", ["x" * 63, "Ä \"q\" %s {b} 'c'", "next_embedding"])
def test_any_name(article: Connection, drain: Drain, name: str, into: bool) -> None:
    """As long as a name can be, or with characters that mean something elsewhere."""
    table = sql.Identifier(name)
    known = {"table": table.as_string(), "model": TESTING_MODEL, "into": name if into else None}
    article.execute(
        sql.SQL("create table {} (id int primary key, title text, {} public.vector(384))").format(
            table, table
        )
    )
    article.execute(sql.SQL("insert into {} values (1, 'a red kettle')").format(table))
    article.execute(
        "select embed.enable(%(table)s, '{title}', into_column => %(into)s, model => %(model)s)",
        known,
    )
    article.execute("select embed.begin_switch(%(table)s, %(model)s)", known | {"model": OTHER})
    tables = "select count(distinct vectors) from embed.source where relation = %s::regclass"
    assert one(article, tables, known["table"]) == 2
    drain()
    of = "select vector_dims(embed.query('kettle', of => %s))"
    assert one(article, of, known["table"]) == 384
    for call, dimensions in (("cut_over", 64), ("roll_back", 384), ("cut_over", 64)):
        article.execute(f"select embed.{call}(%(table)s)".encode(), known)
        assert one(article, of, known["table"]) == dimensions
    article.execute(sql.SQL("update {} set title = 'a green kettle'").format(table))
    drain()
    article.execute("select embed.end_switch(%(table)s)", known)
    assert drain() == []
    search = sql.SQL("select hit.similarity from embed.search(null::{}, 'kettle') hit")
    expected = hash_vector("query: kettle", 64) @ hash_vector("passage: a green kettle", 64)
    (found,) = article.execute(search.format(table)).fetchall()
    assert found[0] == pytest.approx(float(expected), abs=1e-4)
