"""How the SQL is built: templates, shared numbers, the words of keys, and the size of its files."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from embedworker.queue.claim import BACKFILL, FRESH, RETRIES
from embedworker.queue.source import Connection
from embedworker.resources import sql_folder

ROOT = Path(__file__).parents[2]
TEMPLATE = "select {a}, '{1,2}'::int[], '{}', '{\"k\": 1}', format('%s', {b}) from {t_1} where {a}"


def fill(connection: psycopg.Connection[Any], template: str, values: str) -> str:
    row = connection.execute("select embed._fill(%s, %s::jsonb)", [template, values]).fetchone()
    assert row is not None
    return str(row[0])


def test_names_are_replaced_and_other_braces_stay(connection: Connection) -> None:
    assert fill(
        connection, TEMPLATE, '{"a": "x.y", "b": "%I {a}", "t_1": "\\"{b}\\"", "z": 1}'
    ) == (
        "select x.y, '{1,2}'::int[], '{}', '{\"k\": 1}', format('%s', %I {a})"
        ' from "{b}" where x.y'
    )
    assert fill(connection, "{a}|{b}|", '{"a": null, "b": 3}') == "|3|"
    assert fill(connection, "nothing", "{}") == "nothing"


def test_an_unknown_name_is_an_error(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedParameter, match=r"\{t_1\}") as error:
        fill(connection, TEMPLATE, '{"a": 1, "b": 2}')
    assert error.value.diag.message_detail == "Values are given for: a, b."


def seconds(connection: psycopg.Connection[Any], expression: str) -> float:
    """Return the shortest of seven times in which the server computes it 1,000 times."""
    query = f"explain (analyze, timing off) select {expression} from generate_series(1, 1000) as n"
    times = []
    for _ in range(7):
        (line,) = connection.execute(query.encode()).fetchall()[-1]
        times.append(float(line.removeprefix("Execution Time: ").removesuffix(" ms")))
    return min(times)


def test_filling_the_longest_template_of_a_search_is_quick(connection: Connection) -> None:
    connection.execute(
        "create function nothing(template text, value text) returns text language plpgsql"
        " set search_path = pg_catalog, pg_temp as 'begin return template; end'"
    )
    template = "embed._rescored_sql('embed.setting', 'v.id as k' || n, 'k1')"
    assert seconds(connection, template) < 400 * seconds(connection, "nothing('k' || n, '')")


def constants(connection: Connection) -> dict[str, int]:
    rows = connection.execute(
        "select proname, prosrc, pg_get_function_sqlbody(oid) from pg_proc"
        " where pronamespace = 'embed'::regnamespace and proname ~ '^_(lock|turn)_'"
        " and pronargs = 0"
    )
    return {name: int(re.sub(r"\D", "", body or source)) for name, source, body in rows}


def test_python_and_queries_use_the_numbers_of_the_constants(connection: Connection) -> None:
    known = constants(connection)
    assert len(known) >= 11
    classes = {value for name, value in known.items() if name.startswith("_lock")}
    turns = {value for name, value in known.items() if name.startswith("_turn")}
    found = set()
    for file in [*(sql_folder() / "queries").glob("*.sql"), *(ROOT / "tests").rglob("*.py")]:
        for first, second in re.findall(r"(17016674\d\d)(?:, (\d+))?", file.read_text()):
            found.add(int(first))
            assert int(first) in classes, f"{file.name} uses a lock that is not in the constants"
            if second and int(first) == known["_lock_global"]:
                assert int(second) in turns, f"{file.name}: {first}, {second}"
    assert len(found) >= 5
    row = connection.execute("select embed._priorities()").fetchone()
    assert row == ([FRESH, *RETRIES, BACKFILL],)


def test_the_planner_writes_constants_into_queries(connection: Connection) -> None:
    plan = connection.execute(
        "explain (verbose) select embed._lock_sweep(), x = any (embed._priorities())"
        " from generate_series(1, 3) as x"
    ).fetchall()
    text = "\n".join(line for (line,) in plan)
    assert "1701667430" in text
    assert "_lock_sweep" not in text
    assert "_priorities" not in text


def files() -> Iterator[Path]:
    yield from sql_folder().rglob("*.sql")


def test_files_have_at_most_300_lines() -> None:
    counted = {str(file): len(file.read_text().splitlines()) for file in files()}
    assert {n: c for n, c in counted.items() if c > 300} == {}


def test_lines_have_at_most_120_columns() -> None:
    assert [
        f"{file.name}:{number}"
        for file in files()
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if len(line) > 120
    ] == []


def test_functions_do_not_write_the_numbers_again() -> None:
    exempt = {"007_constants.sql"}
    for file in files():
        if file.parent.name != "queries" and file.name not in exempt:
            assert "17016674" not in file.read_text(), f"{file.name}: call embed._lock_…()"
