"""Write docs/reference.md from what it describes.

python docs/generate.py --write     # a throwaway server, some seconds
python docs/generate.py --check     # exit code 1 if the page differs
"""

import argparse
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import typer.main

from embedworker.cli.app import app
from embedworker.service.monitoring import metrics
from embedworker.settings.reference import describe

HERE = Path(__file__).parent
PAGE = HERE / "reference.md"
WIDTH = 96

# What people call: not of an extension, not a trigger, not made for one enabled table, no leading
# underscore. What runs with its owner's rights and is not for everybody is a part of the rest.
FUNCTIONS = """
select
    p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
    obj_description(p.oid, 'pg_proc')
from pg_proc p
where p.pronamespace = 'embed'::regnamespace
and p.proname !~ '^_'
and coalesce(obj_description(p.oid, 'pg_proc'), '') !~ '^Answers with the call to write'
and p.prorettype <> 'trigger'::regtype
and (has_function_privilege('public', p.oid, 'execute') or not p.prosecdef)
and not exists (
    select from pg_depend d
    where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
)
and not exists (select from embed.source s where p.proname ~ format('^source_%s_', s.id))
order by p.proname, p.pronargs desc, p.oid
"""

VIEWS = """
select c.oid, c.relname, obj_description(c.oid, 'pg_class')
from pg_class c
where c.relnamespace = 'embed'::regnamespace and c.relkind = 'v' and c.relname !~ '^_'
order by c.relname
"""

# Tables that people write and workers only read.
TABLES = """
select c.oid, c.relname, obj_description(c.oid, 'pg_class')
from pg_class c
where c.relnamespace = 'embed'::regnamespace and c.relkind = 'r'
and not has_table_privilege('embed_worker', c.oid, 'insert')
and obj_description(c.oid, 'pg_class') is not null
order by c.relname
"""

COLUMNS = """
select a.attname, format_type(a.atttypid, a.atttypmod), col_description(a.attrelid, a.attnum)
from pg_attribute a
where a.attrelid = %s and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""

SQLSTATES = {
    "EW001": "no worker is there, or none answered in time",
    "EW002": "the table is not enabled, or the row has no vector yet",
    "EW003": "an argument is wrong",
    "EW004": "a column that was enabled is gone, or the table is another one",
    "EW005": "dimensions differ",
    "EW006": "refused, because data would be lost",
    "EW007": (
        "the server cannot connect to itself to forward the question: "
        "dblink or its login is missing"
    ),
    "EW008": "the question could not be embedded",
    "EW010": "refused while the model of the table is being changed, or before",
    "EW009": "the login has asked as many questions as it may in a minute",
    "EW011": "a notice: no worker answered, so the words alone rank the rows of a search",
}

EXIT_CODES = """\
| code | meaning |
|---|---|
| 0 | done |
| 1 | failed, and said why and what to do; `doctor`, `--check`: not all is well |
| 2 | wrong use: an unknown command or flag, or a setting that is wrong |
"""


def reference(connection: psycopg.Connection[Any]) -> str:
    """Return the page, for a migrated database."""
    return "\n".join(
        [
            "# Reference",
            "",
            "Made by `python docs/generate.py --write` from the code and from the comments in the",
            "database. A test compares them; do not edit by hand.",
            "",
            "[SQL functions](#sql-functions) · [views](#views) · [tables](#tables) ·",
            "[SQLSTATEs](#sqlstates) · [settings](#settings) · [command line](#command-line) ·",
            "[exit codes](#exit-codes) · [metrics](#metrics)",
            "",
            "## SQL functions",
            "",
            *_functions(connection),
            "## Views",
            "",
            *_relations(connection, VIEWS),
            "## Tables",
            "",
            *_relations(connection, TABLES),
            "## SQLSTATEs",
            "",
            *_sqlstates(),
            "",
            "## Settings",
            "",
            "Each is an environment variable; the database alone has two, of which",
            "`EMBEDWORKER_DATABASE_URL` wins over `DATABASE_URL`. A flag of the same name, where a",
            "command has it, wins over both. They are read once, at the start of a process.",
            "",
            *_settings(),
            "",
            "## Command line",
            "",
            *_commands(),
            "## Exit codes",
            "",
            EXIT_CODES,
            "## Metrics",
            "",
            str(metrics.__doc__).strip(),
            "",
        ]
    )


def _functions(connection: psycopg.Connection[Any]) -> Iterator[str]:
    for name, arguments, result, comment in connection.execute(FUNCTIONS):
        _need(comment, f"embed.{name} has no comment; give it one in sql/")
        yield f"### embed.{name}"
        yield ""
        yield "```sql"
        yield f"embed.{name}({_wrapped(arguments)}) returns {_wrapped(result)}"
        yield "```"
        yield ""
        yield _filled(comment)
        yield ""


def _need(condition: object, message: str) -> None:
    if not condition:
        raise SystemExit(message)


def _wrapped(declared: str) -> str:
    """Lower case as in SQL files, without the casts of defaults; a line each where it is long."""
    shown = re.sub(r"NULL::[\w ]+(\[\])?", "null", declared)
    shown = re.sub(r"('[^']*')::[\w ]+", r"\1", shown)
    shown = shown.replace(" DEFAULT ", " default ").replace("SETOF ", "setof ")
    shown = shown.replace("TABLE(", "table (")
    if len(shown) <= WIDTH - 30:
        return shown
    head, bracket, rest = shown.partition("(") if shown.startswith("table (") else ("", "", shown)
    inner = rest.removesuffix(")") if bracket else rest
    lines = ",\n".join(f"    {part}" for part in inner.split(", "))
    return f"{head}{bracket}\n{lines}\n{')' if bracket else ''}"


def _relations(connection: psycopg.Connection[Any], query: str) -> Iterator[str]:
    for oid, name, comment in connection.execute(query).fetchall():
        _need(comment, f"embed.{name} has no comment; give it one in sql/")
        yield f"### embed.{name}"
        yield ""
        yield _filled(comment)
        yield ""
        yield from _table(
            ("column", "type", "meaning"),
            (
                (f"`{column}`", kind, meaning or "")
                for column, kind, meaning in connection.execute(COLUMNS, [oid])
            ),
        )
        yield ""


def _sqlstates() -> Iterator[str]:
    """Those that occur in the SQL, each with a meaning."""
    raised = {
        code
        for folder in ("functions", "schema", "triggers")
        for file in (HERE.parent / "sql" / folder).rglob("*.sql")
        for code in re.findall(r"errcode = '(EW\d+)'", file.read_text())
    }
    _need(raised == set(SQLSTATES), f"to be explained, or gone: {raised ^ set(SQLSTATES)}")
    yield "Each comes with a hint that says what to do."
    yield ""
    yield from _table(("SQLSTATE", "meaning"), SQLSTATES.items())


def _settings() -> Iterator[str]:
    yield from _table(
        ("variable", "default", "unit", "meaning"),
        ((f"`{s.variable}`", f"`{s.default}`", s.unit, s.meaning) for s in describe()),
    )


def _commands() -> Iterator[str]:
    """Yield the text of ``--help``, in a layout that does not depend on typer's version."""
    root = typer.main.get_command(app)
    for path, command in _tree("embedworker", root):
        yield f"### {path}"
        yield ""
        yield "```text"
        yield "\n".join(_help(path, command)).rstrip()
        yield "```"
        yield ""


def _tree(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _tree(f"{path} {name}", inner)


def _help(path: str, command: Any) -> Iterator[str]:
    given = [p for p in command.params if p.param_type_name == "argument"]
    flags = [
        p
        for p in command.params
        if p.param_type_name == "option"
        and not {"--install-completion", "--show-completion"} & {*p.opts}
    ]
    below = getattr(command, "commands", {})
    usage = [path, *(["[OPTIONS]"] if flags else []), *(_place(p) for p in given)]
    yield " ".join(usage + (["COMMAND …"] if below else []))
    yield ""
    for paragraph in _paragraphs(command):
        yield from textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False)
        yield ""
    rows = [(_place(p), p.help or "") for p in given]
    rows += [(_flag(p), _meaning(p)) for p in flags]
    rows += [(name, _paragraphs(inner)[0]) for name, inner in below.items()]
    for left, right in rows:
        lines = textwrap.wrap(right, WIDTH - 30, break_on_hyphens=False) or [""]
        if len(left) > 27:
            yield f"  {left}"
            left = ""
        yield f"  {left:<28}{lines[0]}".rstrip()
        yield from (" " * 30 + line for line in lines[1:])


def _paragraphs(command: Any) -> list[str]:
    return [" ".join(part.split()) for part in str(command.help).split("\n\n")]


def _place(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _flag(parameter: Any) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return names
    kind = parameter.metavar or names.rpartition("-")[2].upper()
    return f"{names} {kind}"


def _meaning(parameter: Any) -> str:
    said = parameter.help or ""
    if parameter.default not in (None, False, True, (), []) and not callable(parameter.default):
        said += f" [default: {parameter.default}]"
    if parameter.envvar:
        names = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar
        said += f" [{', '.join(names)}]"
    return said


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _from_a_fresh_database() -> str:
    from embedworker.database.embedded.account import Account
    from embedworker.database.embedded.cluster import Cluster
    from embedworker.database.embedded.installation import unpack
    from embedworker.database.migrate import migrate

    with tempfile.TemporaryDirectory(
        prefix="embedworker-docs-", ignore_cleanup_errors=True
    ) as made:
        folder = Path(made)
        folder.chmod(0o711)  # the server may be another user's
        cluster = Cluster(folder, unpack(folder, Account.unprivileged()), options={"fsync": "off"})
        cluster.start()
        try:
            migrate(cluster.url())
            with psycopg.connect(cluster.url()) as connection:
                return reference(connection)
        finally:
            cluster.stop("immediate")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--check", action="store_true", help="exit with 1 if the page differs")
    how.add_argument("--write", action="store_true", help="write it")
    chosen = parser.parse_args()
    page = _from_a_fresh_database()
    if chosen.write:
        PAGE.write_text(page)
        return 0
    if PAGE.read_text() == page:
        return 0
    print(f"{PAGE} differs: python docs/generate.py --write", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
