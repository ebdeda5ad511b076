"""``embedworker fleet``: many workers for a backfill, placed by Ray."""

import math
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedworker.cli.console import JsonOption, database_url, print_json, settings
from embedworker.errors import ConfigurationError, EmbedworkerError, SourceError
from embedworker.extras import require

if TYPE_CHECKING:
    from embedworker.cli.database import Connection
    from embedworker.cli.fleet_bar import Bar
    from embedworker.fleet.placement import Fleet, Size
    from embedworker.fleet.progress import Progress, SourceProgress
    from embedworker.settings import Settings

__all__ = ["register"]

LOOK = 1.0  # seconds between looks
SETTLE = 15.0  # seconds until it is said that workers are missing
STUCK = 60.0  # seconds without a row until a trouble ends --until-drained


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(fleet)


def fleet(
    context: typer.Context,
    tables: Annotated[list[str], typer.Argument(metavar="TABLE...", help="Tables to embed.")],
    ray: Annotated[
        str,
        typer.Option(
            metavar="auto|local|ADDRESS",
            help="A cluster of Ray: the one that Ray finds or else a new one, a new one on this "
            "machine, or the one at an address.",
        ),
    ] = "auto",
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Workers to place.")] = 1,
    cpus: Annotated[
        float, typer.Option(min=0, metavar="N", help="Processors of each worker.")
    ] = 1.0,
    gpus: Annotated[
        float, typer.Option(min=0, metavar="N", help="GPUs of each worker; 0.5 shares one.")
    ] = 0.0,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="ROWS", help="Most rows of a backfill that all of them claim in a second."
        ),
    ] = None,
    until_drained: Annotated[
        bool, typer.Option("--until-drained", help="End when nothing of the tables waits.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show rows, tokens, hours and disk; start nothing."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Embed tables with many workers on the machines of a Ray cluster, until Ctrl-C.

    The database's leases say who works on which row. Ray places the workers and starts those again
    that die. Changes of the application go first. `embedworker run` answers questions and builds
    indexes meanwhile.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigurationError(f"--rate {rate:g} is no ceiling; expected rows a second above 0")
    if dry_run and until_drained:
        raise ConfigurationError("--dry-run starts no worker: not with --until-drained")
    require("`embedworker fleet`", "worker", *(() if dry_run else ("ray",)))
    from embedworker.cli.database import connected
    from embedworker.cli.fleet_plan import check_connections, estimate
    from embedworker.fleet.progress import Progress, connections

    chosen, url = settings(context), database_url(context)
    with connected(context) as connection:
        sources = _sources(connection, tables)
        check_connections(connections(connection), workers)
        if dry_run:
            with closing(Progress(url, sources)) as progress:
                made = estimate(connection, progress.look(), chosen, workers, rate)
            if json:
                print_json([one.plain() for one in made])
            for line in () if json else [line for one in made for line in one.lines(workers)]:
                typer.echo(line)
            return
        if until_drained:
            with closing(Progress(url, sources)) as progress:
                _refuse_paused(progress.look())
    from embedworker.cli.fleet_bar import Bar
    from embedworker.fleet.placement import Size

    size = Size(workers, cpus, gpus, rate)
    with closing(Progress(url, sources)) as progress, Bar() as bar:
        run = _Run(progress, bar, size, until_drained)
        run.serve(ray, url, chosen, sources)
    if json:
        print_json(run.summary())
    else:
        bar.say_end(run.summary())
    if until_drained and not run.drained:
        raise typer.Exit(1)


def _refuse_paused(found: "Sequence[SourceProgress]") -> None:
    for one in found:
        if one.paused:
            raise SourceError(
                f"{one.source} is paused, so --until-drained would never end; "
                f"run `embedworker resume {one.source}` first"
            )


def _sources(connection: "Connection", tables: Sequence[str]) -> frozenset[int]:
    from embedworker.cli.database import find_table
    from embedworker.database.statements import statement

    found = {find_table(connection, table).oid: table for table in tables}
    rows = connection.execute(statement("fleet_sources"), {"relations": list(found)}).fetchall()
    missing = found.keys() - {relation for _, relation in rows}
    if missing:
        table = found[missing.pop()]
        raise SourceError(
            f"{table} is not enabled; `embedworker enable {table} COLUMN` makes it searchable"
        )
    return frozenset(number for number, _ in rows)


@dataclass
class _Run:
    """One call, from the first look to the end."""

    progress: "Progress"
    bar: "Bar"
    size: "Size"
    until_drained: bool
    stopped: threading.Event = field(default_factory=threading.Event)
    drained: bool = False
    last: list["SourceProgress"] = field(default_factory=list)
    done: int = 0
    restarts: int = 0
    seconds: float = 0.0

    def serve(self, ray: str, url: str, chosen: "Settings", sources: frozenset[int]) -> None:
        from embedworker.cli.signals import stop_on_signals
        from embedworker.fleet.placement import Fleet

        # Ray prints what happens to machines to stdout, where the result goes.
        with redirect_stdout(sys.stderr), Fleet(ray, url, chosen, sources, self.size) as placed:
            stop_on_signals(self.stopped.set)  # Ray has set its own
            started = self._moved_at = time.monotonic()
            while not self.stopped.is_set():
                self._look(placed, time.monotonic() - started)
                if self.drained and self.until_drained:
                    break
                self.stopped.wait(LOOK)
            self.bar.say("ending in order")
            self.seconds = time.monotonic() - started
        self.done, self.restarts = placed.done, placed.restarts
        self.last = self.progress.look() or self.last
        self.drained = self.progress.drained(self.last)

    def summary(self) -> dict[str, Any]:
        """Return what was done, for a program."""
        kept = ("source", "name", "rows", "embedded", "pending", "dead", "error")
        return {
            "sources": [{name: getattr(one, name) for name in kept} for one in self.last],
            "drained": self.drained,
            "rows": self.done,
            "seconds": round(self.seconds, 1),
            "rows_per_second": round(self.done / max(self.seconds, 1e-9), 1),
            "workers": self.size.workers,
            "restarts": self.restarts,
        }

    def _look(self, placed: "Fleet", seconds: float) -> None:
        reports = placed.look()
        self.last = self.progress.look() or self.last
        if self.until_drained:
            _refuse_paused(self.last)
        self.drained = self.progress.drained(self.last)
        running = sum(report.ready for report in reports)
        troubles = [report.trouble for report in reports if report.trouble]
        troubles += [f"{one.source}: {one.error}" for one in self.last if one.error]
        for trouble in troubles:
            self.bar.say(trouble)
        if len(reports) < self.size.workers and seconds > SETTLE:
            self.bar.say(f"workers are missing: {placed.room()}")
        self.bar.show(self.last, running, self.size.workers)
        if placed.done != self.done:
            self.done, self._moved_at = placed.done, time.monotonic()
        elif self.until_drained and troubles and time.monotonic() - self._moved_at > STUCK:
            raise EmbedworkerError(f"no row was embedded for {STUCK:g} s: {troubles[0]}")
