"""``embedworker run``: the worker."""

import logging
import os
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from embedworker.cli.console import database_url, fail, settings
from embedworker.cli.database import explained
from embedworker.cli.signals import stop_on_signals
from embedworker.errors import ConfigurationError, EmbedworkerError
from embedworker.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedworker.service.worker import Lane, Worker
    from embedworker.settings import Settings

__all__ = ["register"]

log = logging.getLogger("embedworker")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(run)


def run(
    context: typer.Context,
    once: Annotated[
        bool, typer.Option("--once", help="Embed the waiting rows, then end: for a cron job.")
    ] = False,
    only_queries: Annotated[
        bool, typer.Option("--only-queries", help="Only answer questions.")
    ] = False,
    only_passages: Annotated[
        bool, typer.Option("--only-passages", help="Only keep vectors current.")
    ] = False,
    web: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Serve the page of `embedworker web` on this port, too; 0 takes any free port.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="EMBEDWORKER_METRICS_PORT",
            help="Answer /metrics, /healthz and /readyz on this port; 0 takes any free port.",
        ),
    ] = None,
    metrics_host: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDWORKER_METRICS_HOST",
            help="Address of that port; 0.0.0.0 for all of them. [default: 127.0.0.1]",
        ),
    ] = None,
) -> None:
    """Keep vectors current and answer questions, until SIGTERM, SIGHUP or Ctrl-C.

    A first signal ends the worker in order: it finishes its current batch and hands back the rest.
    A second signal ends it at once. Both ways lose nothing.
    """
    require("`embedworker run`", "worker")
    if web is not None:
        require("`embedworker run --web`", "web")
    from embedworker.service.logs import set_up_logs
    from embedworker.service.parent import end_with_parent

    if sum((once, only_queries, only_passages)) > 1:
        raise ConfigurationError(
            "--once, --only-queries and --only-passages exclude each other; give at most one"
        )
    if once and web is not None:
        raise ConfigurationError("--once ends when nothing is due: not with --web")
    chosen = settings(context, metrics_port=metrics_port, metrics_host=metrics_host)
    set_up_logs(chosen)
    is_child = end_with_parent()
    url = database_url(context)
    if chosen.database_url is None:
        # The embedded server is ours to set up; its port, which the loopback needs, may
        # have changed since the last time.
        from embedworker.database.migrate import migrate

        for remark in migrate(url):
            log.info(remark)
    if once:
        _run_once(url, chosen)
    elif only_queries or only_passages:
        if only_passages:
            os.nice(chosen.nice)
        lane: Lane = "passages" if only_passages else "questions"
        _serve(url, chosen, lane, _environment(context, url), web=web, is_child=is_child)
    else:
        _serve(url, chosen, "questions", _environment(context, url), passages=True, web=web)


def _run_once(url: str, chosen: "Settings") -> None:
    from embedworker.service.worker import Worker

    worker = Worker(url, chosen, lanes=("passages",), exit_when_hung=True)
    stop_on_signals(worker.stop)
    with _faults_logged(), explained():
        troubles = worker.run_once()
    _end_while_loading(worker)
    if troubles:
        fail("\n".join(troubles))
    log.info("nothing is due any more")


def _serve(
    url: str,
    chosen: "Settings",
    lane: "Lane",
    environment: dict[str, str],
    *,
    passages: bool = False,
    web: int | None = None,
    is_child: bool = False,
) -> None:
    """Serve a lane here, and in child processes that of ``passages`` and the page."""
    from embedworker.service.monitoring.child_metrics import Reports, report_to_parent
    from embedworker.service.monitoring.metrics import Metrics
    from embedworker.service.monitoring.monitor import monitored
    from embedworker.service.supervisor import Child
    from embedworker.service.systemd import reported_to_systemd, tell_systemd
    from embedworker.service.worker import Worker

    metrics = Metrics()
    worker = Worker(url, chosen, lanes=[lane], metrics=metrics, exit_when_hung=True)
    report_to_parent(worker.telemetry(lane))
    reports = Reports(metrics) if passages and chosen.metrics_port is not None else None
    command = [sys.executable, "-P", "-m", "embedworker.cli"]
    environment = {**os.environ, **environment}
    children = []
    if passages:
        children.append(Child([*command, "run", "--only-passages"], environment, reports=reports))
    if web is not None:
        page = [*command, "web", "--port", str(web)]
        children.append(Child(page, environment, what="the process of the page"))
    with ExitStack() as stack:
        if chosen.metrics_port is not None:
            readiness = stack.enter_context(
                monitored(url, chosen, worker, metrics, lanes=[lane], reports=reports)
            )

        def stop() -> None:
            if chosen.metrics_port is not None:
                readiness.ending = True
            worker.stop()
            if not is_child:
                tell_systemd("STOPPING=1")
            for child in children:  # now: this process may be loading its model for a while yet
                child.ask_to_end()

        stop_on_signals(stop, is_child=is_child)
        for child in children:
            child.start()
            stack.callback(child.stop)
        if not is_child:
            stack.enter_context(reported_to_systemd())
        with _faults_logged():
            worker.run()
    _end_while_loading(worker)


def _end_while_loading(worker: "Worker") -> None:
    """End without the models: one takes seconds to load, and minutes to download."""
    if worker.loading:  # then the worker was stopped, and has handed everything back
        logging.shutdown()
        os._exit(0)


@contextmanager
def _faults_logged() -> "Iterator[None]":
    """Write a fault of ours to the log, where it has no text of a row, and end with 1."""
    try:
        yield
    except EmbedworkerError:
        raise
    except Exception:
        log.critical("the worker ends by a fault of its own; please report it", exc_info=True)
        raise typer.Exit(1) from None


def _environment(context: typer.Context, url: str) -> dict[str, str]:
    """Return the global flags for a child process; never on its command line."""
    given = {**(context.find_root().obj or {}), "database_url": url}
    # What the child counts comes to us; the port is taken.
    return {"EMBEDWORKER_METRICS_PORT": ""} | {
        f"EMBEDWORKER_{name.upper()}": str(value)
        for name, value in given.items()
        if value is not None
    }
