"""``embedworker run``: the worker."""

import logging
import os
import signal
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from embedworker.cli.console import database_url as find_database_url
from embedworker.cli.console import fail, settings
from embedworker.cli.database import explained
from embedworker.cli.databases import DatabasesFile, DatabaseUrls, several_databases
from embedworker.cli.signals import stop_on_signals
from embedworker.errors import ConfigurationError, EmbedworkerError
from embedworker.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from embedworker.service.databases import Databases
    from embedworker.service.worker import Lane, Worker
    from embedworker.settings import Settings

__all__ = ["register"]

log = logging.getLogger("embedworker")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(run)


def run(
    context: typer.Context,
    database_url: DatabaseUrls = None,
    databases: DatabasesFile = None,
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

    Several databases share the models; with --databases, SIGHUP reads the file again.
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
    read = several_databases(context, database_url, databases)
    if read is not None and web is not None:
        raise ConfigurationError("--web shows one database; expected no further ones: leave it out")
    url = "" if read is not None else _one_database(context, chosen)
    if once:
        _run_once({"": url} if read is None else read(), chosen)
        return
    if only_passages:
        os.nice(chosen.nice)
    lane: Lane = "passages" if only_passages else "questions"
    both = not (only_queries or only_passages)
    environment = _environment(context, url)
    _serve(read or (lambda: {"": url}), chosen, lane, environment, both, web, is_child=is_child)


def _one_database(context: typer.Context, chosen: "Settings") -> str:
    url = find_database_url(context)
    if chosen.database_url is None:
        # The embedded server is ours to set up; its port, which the loopback needs, may
        # have changed since the last time.
        from embedworker.database.migrate import migrate

        for remark in migrate(url):
            log.info(remark)
    return url


def _run_once(urls: "Mapping[str, str]", chosen: "Settings") -> None:
    """Embed what is due in each database; what stands in the way in one keeps no other waiting."""
    from embedworker.service.encoders import Encoders
    from embedworker.service.worker import Worker

    encoders = Encoders()
    workers = {
        name: Worker(url, chosen, lanes=("passages",), exit_when_hung=True, encoders=encoders)
        for name, url in urls.items()
    }

    def stop() -> None:
        for worker in workers.values():
            worker.stop()

    stop_on_signals(stop)
    troubles: list[str] = []
    with _faults_logged():
        for name, worker in workers.items():
            try:
                with explained():
                    found = worker.run_once()
            except EmbedworkerError as error:
                if not name:
                    raise
                found = [str(error)]
            troubles += [f"{name}: {trouble}" if name else trouble for trouble in found]
    try:
        if troubles:
            fail("\n".join(troubles))
        log.info("nothing is due any more")
    finally:
        for worker in workers.values():
            _end_while_loading(worker, 1 if troubles else 0)


def _serve(
    read: "Callable[[], Mapping[str, str]]",
    chosen: "Settings",
    lane: "Lane",
    environment: dict[str, str],
    passages: bool,
    web: int | None,
    *,
    is_child: bool,
) -> None:
    """Serve a lane here, and in child processes that of ``passages`` and the page."""
    from embedworker.service.databases import Databases
    from embedworker.service.monitoring.child_metrics import Reports, report_to_parent
    from embedworker.service.monitoring.metrics import Metrics
    from embedworker.service.monitoring.monitor import Monitor, monitored
    from embedworker.service.supervisor import Child
    from embedworker.service.systemd import reported_to_systemd, tell_systemd

    metrics = Metrics()
    is_monitored = chosen.metrics_port is not None
    reports = Reports(metrics) if passages and is_monitored else None
    worker = Databases(
        chosen,
        lane,
        read,
        metrics=metrics,
        monitor=partial(Monitor, settings=chosen, reports=reports) if is_monitored else None,
        is_child=is_child,
    )
    report_to_parent(worker.telemetries)
    command = [sys.executable, "-P", "-m", "embedworker.cli"]
    environment = {**os.environ, **environment}
    children = []
    if passages:
        children.append(Child([*command, "run", "--only-passages"], environment, reports=reports))
    if web is not None:
        page = [*command, "web", "--port", str(web)]
        children.append(Child(page, environment, what="the process of the page"))
    with ExitStack() as stack:
        if is_monitored:
            stack.enter_context(monitored(chosen, worker.monitors, metrics))

        def stop() -> None:
            worker.stop()
            if not is_child:
                tell_systemd("STOPPING=1")
            for child in children:  # now: this process may be loading its model for a while yet
                child.ask_to_end()

        def reload() -> None:
            worker.reload()
            for child in children:
                child.signal(signal.SIGHUP)

        reloads = environment.get("EMBEDWORKER_DATABASES")
        stop_on_signals(stop, is_child=is_child, reload=reload if reloads else None)
        for child in children:
            child.start()
            stack.callback(child.stop)
        if not is_child:
            stack.enter_context(reported_to_systemd())
        with _faults_logged():
            worker.run()
    _end_while_loading(worker)


def _end_while_loading(worker: "Worker | Databases", code: int = 0) -> None:
    """End without the models: one takes seconds to load, and minutes to download."""
    if worker.loading:  # then the worker was stopped, and has handed everything back
        logging.shutdown()
        os._exit(code)


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
    """Return the global flags for a child process; never on its command line.

    Without ``url`` it has several databases: those of a file, or of the flags, one a line.
    """
    given = {**(context.find_root().obj or {})}
    if url:
        given["database_url"] = url
    # What the child counts comes to us; the port is taken.
    # Flags win over a file that the environment names.
    return {"EMBEDWORKER_METRICS_PORT": "", "EMBEDWORKER_DATABASES": ""} | {
        f"EMBEDWORKER_{name.upper()}": str(value)
        for name, value in given.items()
        if value is not None
    }
