"""``embedworker eval``: how good search is, on a benchmark or on one's own questions."""

import signal
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from embedworker.cli.console import (
    JsonOption,
    columns,
    console,
    database_url,
    note,
    print_json,
    settings,
)
from embedworker.errors import ConfigurationError
from embedworker.extras import require

if TYPE_CHECKING:
    from embedworker.search.beir import Collection

__all__ = ["register"]

MAX_K = 1000
MISSED_SHOWN = 10


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval")(evaluate)


def evaluate(
    context: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            help="Folder with corpus.jsonl, queries.jsonl and qrels.tsv, in BEIR's format.",
        ),
    ] = None,
    k: Annotated[
        int,
        typer.Option("-k", "--k", min=1, max=MAX_K, metavar="N", help="Rows for each question."),
    ] = 10,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="EMBEDWORKER_MODEL",
            help="Model of DIR; not given: the database's default.",
        ),
    ] = None,
    chunk: Annotated[
        bool,
        typer.Option("--chunk/--no-chunk", help="Split long documents, or cut them."),
    ] = True,
    lexical: Annotated[
        float | None,
        typer.Option(metavar="WEIGHT", help="Weight of the words; not given: the table's own."),
    ] = None,
    rerank: Annotated[
        int | None,
        typer.Option(min=1, max=200, metavar="N", help="Rows that a cross-encoder orders."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare all vectors, even if there is an index.")
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            help="Settings to compare, see above.",
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Your questions and the keys of the right rows, see above."
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="The enabled table of --questions, as in SQL."),
    ] = None,
    from_judgements: Annotated[
        bool,
        typer.Option("--from-judgements", help="Ask the judged questions of --table."),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name of the source, if the table is enabled several times."
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Rankings only, in a fraction of the time: no times, no recall@100."
        ),
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the benchmark's table in the database.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Measure the quality and the speed of search, with the SQL that applications send.

    With DIR, its documents become a table in the schema embedworker_eval. The command embeds this
    table, asks it and drops it. With --questions and --table, give your questions and the keys of
    the right rows, one per line: {"question": "how do I …?", "key": 17}. A question with several
    right rows has several lines. A key of several columns is a list, or an object by column.
    --from-judgements asks the questions of embed.judgement, and refuses fewer than 30 of them.

    A setting of --compare is exact (all vectors), hnsw (by the index), default (what an application
    gets), lexical=WEIGHT (of the question's words, 0 for none) or rerank=N (rows that a
    cross-encoder reads). Join several with +: --compare exact+lexical=0,default,rerank=20.
    Differences are from the first setting.
    """
    require("`embedworker eval`", "worker", "eval")
    from embedworker.cli.database import connected
    from embedworker.cli.evaluation import Evaluation
    from embedworker.search.evaluate import Setting, settings_of

    if [folder is not None, questions is not None, from_judgements].count(True) != 1 or (
        folder is None
    ) != (table is not None):
        raise ConfigurationError(
            "give either DIR, or --questions FILE or --from-judgements with --table TABLE"
        )
    given = context.get_parameter_source("model")
    flagged = given is not None and given.name == "COMMANDLINE"  # the variable is for all commands
    if folder is None and (flagged or keep or not chunk):
        raise ConfigurationError("--model, --no-chunk and --keep go with DIR, not with --table")
    if folder is not None and name is not None:
        raise ConfigurationError("--name goes with --table, not with DIR")
    base = Setting("exact" if exact else "planner", lexical, rerank)
    asked = [base] if compare is None else settings_of(compare, base)
    signal.signal(signal.SIGTERM, _interrupted)
    url = database_url(context)
    chosen = settings(context)
    if chosen.database_url is None:
        from embedworker.database.migrate import migrate

        for remark in migrate(url):  # the embedded server is ours to set up
            note(remark)
    with connected(context) as connection, ExitStack() as cleanup:
        evaluation = Evaluation(connection, url, chosen, cleanup)
        if folder is not None:
            evaluation.load(folder, asked, model=model, chunk=chunk, keep=keep)
        else:
            evaluation.use(str(table), name, questions)
        report = evaluation.run(asked, k, quick=quick)
        collection = evaluation.collection
    if json:
        print_json(report)
    else:
        _print(report, None if folder is not None else collection)
    if keep:
        note(f"kept: {report['table']}; the next evaluation drops it")


def _print(report: dict[str, Any], own: "Collection | None") -> None:
    fingerprint = report["fingerprint"]
    notes = fingerprint["notes"]
    typer.echo(
        f"{report['collection']}: {report['questions']} questions, {report['passages']} passages, "
        f"{'long texts split' if report['chunk'] else 'long texts cut'}, k = {report['k']}"
    )
    typer.echo(
        f"{report['model']}, fingerprint {fingerprint['digest'][:12]}, "
        f"{', '.join(f'{name} {notes[name]}' for name in ('engine', 'dtype', 'device'))}"
    )
    typer.echo()
    measures = list(report["settings"][0]["measures"])
    lines = [["", "path", *measures, "p50 ms", "p95 ms"]]
    for number, entry in enumerate(report["settings"]):
        values = [f"{entry['measures'][name]:.4f}" for name in measures]
        times = [_milliseconds(entry[name]) for name in ("p50_ms", "p95_ms")]
        lines.append([entry["setting"], entry["path"], *values, *times])
        if number == 0:
            errors = [f"{entry['standard_error'][name]:.4f}" for name in measures]
            lines.append(["  standard error", "", *errors, "", ""])
        if "difference" in entry:
            by_name = entry["difference"]
            lines.append(
                [
                    "  difference",
                    "",
                    *(f"{by_name[n]['difference']:+.4f}" for n in measures),
                    "",
                    "",
                ]
            )
            lines.append(
                [
                    "  standard error",
                    "",
                    *(f"{by_name[n]['standard_error']:.4f}" for n in measures),
                    "",
                    "",
                ]
            )
    for line in columns(lines, console().width, right=range(2, len(lines[0]))):
        typer.echo(line)
    if own is not None and report["missed"]:
        typer.echo()
        typer.echo(f"no right row among the first {report['k']}:")
        for number in report["missed"][:MISSED_SHOWN]:
            typer.echo(f"  {own.questions[number]}")
        more = len(report["missed"]) - MISSED_SHOWN
        if more > 0:
            typer.echo(f"  … and {more} more (--json has all)")


def _milliseconds(time: float | None) -> str:
    return "-" if time is None else f"{time:.1f}"


def _interrupted(_: int, __: FrameType | None) -> NoReturn:
    """SIGTERM cleans up as Ctrl-C does."""
    raise KeyboardInterrupt
