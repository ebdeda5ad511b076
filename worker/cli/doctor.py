"""``embedworker doctor``: everything that could be wrong, each with what to do."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.console import JsonOption, database_url, print_json, settings

if TYPE_CHECKING:
    from worker.service.doctor import Finding, State

__all__ = ["register"]

_COLORS: "dict[State, str]" = {
    "ok": typer.colors.GREEN,
    "warning": typer.colors.YELLOW,
    "problem": typer.colors.RED,
    "skipped": typer.colors.BRIGHT_BLACK,
}
_INDENT = " " * 10


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    context: typer.Context,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show only what is not well.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check connection, schema, triggers, queues, models, indexes and disks.

    Exits with 1 where something does not work; a warning alone does not.
    """
    from worker.service.doctor import examine

    findings = []
    subject = None
    for finding in examine(database_url(context), settings(context)):
        findings.append(finding)
        if json or (quiet and finding.state == "ok"):
            continue
        if finding.subject != subject:
            subject = finding.subject
            typer.secho(subject, bold=True)
        _print(finding)
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        counts = {s: sum(f.state == s for f in findings) for s in ("problem", "warning", "ok")}
        typer.echo(", ".join(f"{count} {state}" for state, count in counts.items()))
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def _print(finding: "Finding") -> None:
    state = typer.style(finding.state.ljust(8), fg=_COLORS[finding.state])
    typer.echo(f"  {state}{finding.check}: {finding.detail}")
    if finding.advice and finding.state != "ok":
        typer.echo(f"{_INDENT}{finding.advice}")
