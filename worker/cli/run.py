"""``embedworker run``: the worker."""

import logging
import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from worker.cli.console import database_url, fail, note, settings
from worker.cli.database import explained
from worker.errors import ConfigurationError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(run)


def run(
    context: typer.Context,
    once: Annotated[
        bool, typer.Option("--once", help="Embed what is due, then end: for a cron job.")
    ] = False,
    only_queries: Annotated[
        bool, typer.Option("--only-queries", help="Only answer questions.")
    ] = False,
    only_passages: Annotated[
        bool, typer.Option("--only-passages", help="Only keep vectors current.")
    ] = False,
) -> None:
    """Keep vectors current and answer questions, until SIGTERM or Ctrl-C.

    A first signal ends in order: the batch at the model is finished, the rest handed back. A second
    one ends at once; nothing is lost either way.
    """
    from worker.service.logs import set_up_logs
    from worker.service.supervisor import Child, end_with_parent
    from worker.service.worker import LANES, Lane, Worker

    if sum((once, only_queries, only_passages)) > 1:
        raise ConfigurationError(
            "--once, --only-queries and --only-passages exclude each other; give at most one"
        )
    chosen = settings(context)
    set_up_logs(chosen)
    end_with_parent()
    url = database_url(context)
    if chosen.database_url is None:
        # The embedded server is ours to set up; its port, which the road of questions needs, may
        # have changed since the last time.
        from worker.database.migrate import migrate

        for remark in migrate(url):
            note(remark)
    lanes: tuple[Lane, ...] = LANES
    if only_queries or not only_passages:
        lanes = ("questions",)
    if only_passages or once:
        lanes = ("passages",)
        if not once:
            os.nice(chosen.nice)
    worker = Worker(url, chosen, lanes=lanes)
    child = None
    if not (once or only_queries or only_passages):
        child = Child(
            [sys.executable, "-P", "-m", "worker.cli", "run", "--only-passages"],
            {**os.environ, **_environment(context, url)},
        )
        child.start()

    def on_signal(number: int, _: FrameType | None) -> None:
        logging.getLogger("embedworker").info("%s: ending in order", signal.Signals(number).name)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
        signal.signal(signal.SIGINT, lambda *_: os._exit(1))
        worker.stop()
        if child is not None:  # now: this process may be loading its model for a while yet
            child.ask_to_end()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        if once:
            with explained():
                troubles = worker.run_once()
            if troubles:
                fail("\n".join(troubles))
            note("nothing is due any more")
        else:
            worker.run()
    finally:
        if child is not None:
            child.stop()


def _environment(context: typer.Context, url: str) -> dict[str, str]:
    """What the global flags said, for a child process; never on its command line."""
    given = {**(context.find_root().obj or {}), "database_url": url}
    return {
        f"EMBEDWORKER_{name.upper()}": str(value)
        for name, value in given.items()
        if value is not None
    }
