"""``embedworker doctor``: everything that could be wrong, each with what to do."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedworker.cli.console import JsonOption, console, hanging, settings, step
from embedworker.cli.console import database_url as find_database_url
from embedworker.cli.databases import DatabasesFile, DatabaseUrls, for_each_database

if TYPE_CHECKING:
    from embedworker.service.doctor import Finding, State

__all__ = ["register"]

_STYLES: "dict[State, str]" = {
    "ok": "green",
    "warning": "yellow",
    "problem": "bold red",
    "skipped": "dim",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    context: typer.Context,
    database_url: DatabaseUrls = None,
    databases: DatabasesFile = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show only problems and warnings.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check connection, schema, triggers, queues, models, indexes and disks.

    Exits with 1 if something does not work. A warning does not change the exit code. Several
    databases have a part each.
    """
    from embedworker.service.doctor import examine

    def show() -> tuple[list[dict[str, Any]], bool]:
        url = find_database_url(context)
        with step("examining"):
            findings = list(examine(url, settings(context)))
        if not json:
            _print(findings, quiet=quiet)
        well = all(finding.state != "problem" for finding in findings)
        return [asdict(finding) for finding in findings], well

    for_each_database(context, database_url, databases, show, json=json)


def _print(findings: "list[Finding]", *, quiet: bool) -> None:
    """Print problems first, each with its advice, and one line per subject without problems."""
    shown = console()
    for state in ("problem", "warning", "skipped"):
        for finding in (each for each in findings if each.state == state):
            hanging(
                shown,
                (finding.state, _STYLES[finding.state]),
                f"{finding.subject}, {finding.check}: {finding.detail}",
            )
            if finding.advice:
                hanging(shown, ("", ""), finding.advice)
    if not quiet:
        well: dict[str, list[str]] = {}
        for finding in findings:
            if finding.state == "ok":
                well.setdefault(finding.subject, []).append(finding.check)
        for subject, checks in well.items():
            hanging(shown, ("ok", _STYLES["ok"]), f"{subject}: {', '.join(checks)}")
    counts = {s: sum(f.state == s for f in findings) for s in ("problem", "warning", "ok")}
    shown.print(", ".join(f"{count} {state}" for state, count in counts.items()))
