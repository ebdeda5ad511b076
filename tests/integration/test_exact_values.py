"""Keys and rows that travel as JSON arrive as the table has them."""

import json
from decimal import Decimal
from typing import Any

from fix_database import Connection
from fix_vectors import VectorWriter

from embedworker.cli.console import print_json
from embedworker.search.functions import search

EXACT = "12345678901234567890.123456789012"


def test_a_hit_is_the_row(connection: Connection, vectors: VectorWriter, capsys: Any) -> None:
    connection.execute(
        """
        create domain price as numeric;
        create table article (
            id numeric(38, 12) primary key, body text, amount price, ratio double precision,
            whole bigint, extra json, more jsonb
        );
        """
    )
    connection.execute(
        "insert into article values (%s, 'flat tyre', 1.10, 0.1, 9007199254740993, %s, %s)",
        [EXACT, '{"a": "\\u0000", "n": 1.5}', f'{{"n": {EXACT}}}'],
    )
    connection.execute("select embed.enable('article', array['body'])")
    vectors.embed("article")
    vectors.know("flat tyre")
    (hit,) = search(connection, "article", "flat tyre")
    assert hit.key == {"id": Decimal(EXACT)}
    assert hit.row == {
        "id": Decimal(EXACT),
        "body": "flat tyre",
        "amount": Decimal("1.10"),
        "ratio": 0.1,
        "whole": 9007199254740993,
        "extra": {"a": "\0", "n": 1.5},
        "more": {"n": Decimal(EXACT)},
    }
    assert [type(hit.row[name]) for name in ("amount", "ratio")] == [Decimal, float]
    print_json(hit.row)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["id"], shown["amount"], shown["ratio"]) == (EXACT, 1.1, 0.1)
