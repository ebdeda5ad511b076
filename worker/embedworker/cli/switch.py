"""``embedworker switch``: change the model of a table without a gap, with a way back."""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedworker.cli.console import JsonOption, note, print_json, settings, step
from embedworker.cli.console import watch as watch_report
from embedworker.cli.source import NameOption, StorageOption, TableArgument
from embedworker.errors import ConfigurationError
from embedworker.extras import require

if TYPE_CHECKING:
    from embedworker.cli.database import Connection
    from embedworker.search.judge import Judgement

__all__ = ["register"]

ASKED = 50  # texts of the table to ask with, where nobody has questions
CHARACTERS = 100  # of each of them
SHOWN = 5  # questions whose rows differ most
SAMPLE = 64  # texts that the plan puts through the model

group = typer.Typer(
    help="Change the model of a table without a gap, with a way back.", no_args_is_help=True
)

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Model that the database knows.")
]


@dataclass(frozen=True, slots=True)
class Switch:
    """One row of the view ``embed.switch``."""

    source: str
    name: str
    from_model: str
    to_model: str
    phase: str
    coverage: str | None
    pending: int | None
    dead: int | None
    eta: timedelta | None
    error: str | None
    from_coverage: str | None
    from_pending: int | None
    from_dead: int | None
    extra_bytes: int | None
    judgement: dict[str, Any] | None
    forced: bool
    started_at: datetime
    cut_over_at: datetime | None
    rolled_back_at: datetime | None
    from_storage: str
    to_storage: str


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="switch")


@group.command()
def plan(
    context: typer.Context, table: TableArgument, model: ModelArgument, name: NameOption = None
) -> None:
    """Show what a switch would cost; load the model and time a sample. Changes nothing."""
    from embedworker.cli.database import connected, find_table
    from embedworker.cli.switch_plan import estimate

    with connected(context) as connection:
        found = find_table(connection, table)
        lines, problem = estimate(connection, found, model, name, settings(context), SAMPLE)
    for label, text in lines:
        typer.echo(f"{label + ':':<10} {text}")
    if problem is not None:
        note(problem)
        raise typer.Exit(1)


@group.command()
def start(
    context: typer.Context,
    table: TableArgument,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Model that the database knows; not given: the same."
        ),
    ] = None,
    name: NameOption = None,
    storage: StorageOption = None,
) -> None:
    """Begin to fill a second set of vectors; the present ones answer meanwhile."""
    (vectors,) = _call(
        context,
        table,
        f"starting the switch of {table}",
        "switch_begin",
        model=model,
        name=name,
        storage=storage,
    )
    typer.echo(f"vectors:   {vectors}")


@group.command()
def status(
    context: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every two seconds, until Ctrl-C.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show every switch: its phase, what both sides lack, and what was judged."""
    from rich.text import Text

    from embedworker.cli.database import connected

    if watch and json:
        raise ConfigurationError("--watch goes on until it is stopped: not with --json")
    with connected(context) as connection:
        if watch:
            watch_report(lambda _: Text("\n".join(_lines(_switches(connection)))))
            return
        found = _switches(connection)
    if json:
        print_json([asdict(one) for one in found])
        return
    for line in _lines(found):
        typer.echo(line)


def _switches(connection: "Connection") -> list[Switch]:
    from psycopg.rows import class_row

    from embedworker.database.statements import statement

    with connection.cursor(row_factory=class_row(Switch)) as cursor:
        return cursor.execute(statement("switch_status"), {}).fetchall()


def _lines(found: list[Switch]) -> list[str]:
    from embedworker import figures

    if not found:
        return ["no model is being changed; `embedworker switch start TABLE MODEL` does that"]
    lines: list[str] = []
    for one in found:
        other = one.from_storage != one.to_storage
        old, new = (f" ({kind})" if other else "" for kind in (one.from_storage, one.to_storage))
        lines += (
            f"{one.source} ({one.name}): {one.phase}{', forced' if one.forced else ''}",
            f"  new: {one.to_model}{new}, {figures.percent(one.coverage)} covered,"
            f" {figures.count(one.pending)} pending, {figures.count(one.dead)} given up,"
            f" ready in {figures.span(one.eta)}",
            f"  old: {one.from_model}{old}, {figures.percent(one.from_coverage)} covered,"
            f" {figures.count(one.from_pending)} pending, {figures.count(one.from_dead)} given up",
            f"  disk of the side that does not answer: {figures.size(one.extra_bytes)}",
        )
        if one.judgement is not None:
            lines.append(f"  judged: {_sentence(one.judgement)}")
        if one.error is not None:
            lines.append(f"  error: {one.error}")
    return lines


@group.command()
def judge(
    context: typer.Context,
    table: TableArgument,
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='Lines of {"question": "…", "key": …}, see below.'),
    ] = None,
    k: Annotated[
        int, typer.Option("-k", "--k", min=1, max=100, metavar="N", help="Rows a question gets.")
    ] = 10,
    name: NameOption = None,
    json: JsonOption = False,
) -> None:
    """Ask both sides the same questions and show how their answers differ.

    With the keys of the right rows: the difference of nDCG and its standard error, as `embedworker
    eval` has them. Without "key": how many rows both sides have in common. Without a file, the
    beginnings of some of the table's own texts are asked. A worker must run. The result is kept:
    cut-over refuses where the new vectors may be worse by more than 0.01.
    """
    require("`embedworker switch judge`", "worker", "eval")
    from embedworker.cli.database import connected, find_table
    from embedworker.cli.evaluation import progress_bar
    from embedworker.database.statements import statement
    from embedworker.queue.source import load_sources
    from embedworker.search.collection import find_source
    from embedworker.search.judge import collection_of
    from embedworker.search.judge import judge as compare

    with connected(context) as connection:
        found = find_table(connection, table)
        number, old, new = _sides(connection, found.oid, table, name)
        before, after = (find_source(connection, found.oid, side) for side in (old, new))
        texts: list[str] = []
        if questions is None:
            source = next(one for one in load_sources(connection) if one.id == before.id)
            asked = {"characters": CHARACTERS, "most": ASKED}
            rows = connection.execute(source.render("switch_texts"), asked).fetchall()
            texts = [text for (text,) in rows]
        collection = collection_of(connection, before, questions, texts)
        with progress_bar("questions", 2 * len(collection.questions)) as show:
            judged = compare(connection, before, after, collection, k, show)
        kept = _kept(judged)
        connection.execute(statement("switch_judged"), {"judgement": _json(kept), "source": number})
    if json:
        print_json(asdict(judged))
    else:
        _print(judged, kept)


@group.command("cut-over")
def cut_over(
    context: typer.Context,
    table: TableArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Although rows are missing or the judgement is worse.")
    ] = False,
    name: NameOption = None,
) -> None:
    """Have the new vectors answer, under the names of the old ones."""
    model = _model_after(
        context, table, f"cutting {table} over", "switch_cut_over", force=force, name=name
    )
    typer.echo(f"{table}: {model} answers; `embedworker switch roll-back {table}` is the way back")


@group.command("roll-back")
def roll_back(context: typer.Context, table: TableArgument, name: NameOption = None) -> None:
    """Have the old vectors answer again; they were kept current."""
    model = _model_after(context, table, f"rolling {table} back", "switch_roll_back", name=name)
    typer.echo(f"{table}: {model} answers")


@group.command()
def end(context: typer.Context, table: TableArgument, name: NameOption = None) -> None:
    """Drop the vectors that do not answer; there is no way back then."""
    doing = f"ending the switch of {table}"
    (other,) = _call(context, table, doing, "switch_model", name=name, waits=True)
    model = _model_after(context, table, doing, "switch_end", name=name)
    typer.echo(f"{table}: {model} answers; the vectors by {other} are dropped")


def _model_after(
    context: typer.Context, table: str, doing: str, query: str, **arguments: Any
) -> str:
    return str(_call(context, table, doing, query, "switch_model", waits=False, **arguments)[0])


def _call(
    context: typer.Context, table: str, doing: str, *queries: str, **arguments: Any
) -> tuple[Any, ...]:
    """Run the queries and return the first row of the last one."""
    from embedworker.cli.database import connected, find_table
    from embedworker.database.rows import fetch_one
    from embedworker.database.statements import statement

    with connected(context) as connection:
        remarks: list[str] = []
        connection.add_notice_handler(
            lambda said: remarks.append(f"note: {said.message_primary}\n{said.message_hint or ''}")
        )
        found = find_table(connection, table)
        with step(doing):
            for query in queries:
                row = fetch_one(
                    connection.execute(statement(query), {"relation": found.oid, **arguments})
                )
        for remark in remarks:
            note(remark.strip())
        return row


def _sides(
    connection: "Connection", relation: int, table: str, name: str | None
) -> tuple[int, str, str]:
    from embedworker.database.statements import statement
    from embedworker.errors import SourceError

    row = connection.execute(
        statement("switch_sides"), {"relation": relation, "name": name}
    ).fetchone()
    if row is None:
        raise SourceError(
            f"the model of {table} is not being changed; begin with `embedworker switch start "
            f"{table} MODEL`"
        )
    return int(row[0]), str(row[1]), str(row[2])


def _kept(judged: "Judgement") -> dict[str, Any]:
    kept = {key: value for key, value in asdict(judged).items() if key != "most_changed"}
    return {key: value for key, value in kept.items() if value is not None}


def _json(kept: dict[str, Any]) -> Any:
    from psycopg.types.json import Jsonb

    return Jsonb(kept)


def _sentence(kept: dict[str, Any]) -> str:
    text = (
        f"{kept['questions']} questions, {kept['overlap']:.0%} of the rows in common,"
        f" {kept['first_changed']} first places changed"
    )
    if "difference" in kept:
        text += (
            f"; nDCG@{kept['k']} {kept['difference']:+.4f},"
            f" standard error {kept['standard_error']:.4f}"
        )
    return text


def _print(judged: "Judgement", kept: dict[str, Any]) -> None:
    typer.echo(_sentence(kept))
    for change in judged.most_changed[:SHOWN]:
        if change.overlap == 1:
            break
        typer.echo(f"\n{change.question}  ({change.overlap:.0%} in common)")
        typer.echo(f"  old: {', '.join(change.before)}")
        typer.echo(f"  new: {', '.join(change.after)}")
