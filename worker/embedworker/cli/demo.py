"""``embedworker demo``: the whole path on sample articles, within a minute."""

import os
import shlex
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from embedworker.cli.console import settings
from embedworker.cli.demo_table import LOCK_TIMEOUT, MARK, clean, make_table
from embedworker.errors import DatabaseError, EmbedworkerError
from embedworker.extras import require

if TYPE_CHECKING:
    from embedworker.cli.database import Connection
    from embedworker.cli.screen import Screen
    from embedworker.demo.choice import Preparation
    from embedworker.demo.process import WorkerProcess
    from embedworker.settings import Settings

__all__ = ["register"]

POLL = 0.05  # seconds between two looks at how many articles are searchable
LONGEST = 600.0  # seconds; a default model that has to be downloaded is the slowest case
GRACE = 10.0  # seconds in which a worker may get over a trouble by itself
LOG = "demo-worker.log"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    context: typer.Context,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep", help="Keep the server, the worker and the articles, and print how to connect."
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Model; not given: the default, or the bundled one offline."
        ),
    ] = None,
) -> None:
    """Show the main job: sample articles, found by questions in Korean and English.

    The demo uses the table demo.article of the embedded server, or of the given database.
    """
    require("`embedworker demo`", "worker", "embedded")
    from embedworker.cli.database import explained
    from embedworker.cli.demonstration import Demonstration
    from embedworker.cli.screen import Screen
    from embedworker.database.connect import connect
    from embedworker.demo.choice import Preparation
    from embedworker.demo.material import script
    from embedworker.demo.process import WorkerProcess

    signal.signal(signal.SIGTERM, _interrupted)
    chosen = settings(context)
    screen = Screen()
    screen.title("embedworker: text columns of PostgreSQL tables, searchable by meaning")
    preparation = Preparation(model, chosen.cache_dir)
    preparation.start()
    with ExitStack() as cleanup, explained():
        url, log = _server(chosen, screen, cleanup)
        connection = cleanup.enter_context(
            connect(
                url, vectors=False, lock_timeout=LOCK_TIMEOUT, application_name="embedworker demo"
            )
        )
        own_model = _migrate(url, connection, screen, preparation, chosen)
        # Undone in reverse: the worker ends before its table goes.
        cleanup.callback(clean, url)
        process = WorkerProcess(log, _environment(context, url), keep=keep)
        cleanup.callback(process.stop)
        screen.fact("worker", f"process {process.pid}, log in {log}")
        make_table(connection, screen, own_model)
        check = _Watchman(connection, process, preparation)
        _await_articles(connection, screen, preparation, check)
        Demonstration(connection, screen, check).run(script())
        if keep:
            cleanup.pop_all()
            connection.close()
            _say_how(context, chosen, screen, process)
        else:
            _say_more(context, screen)


def _server(chosen: "Settings", screen: "Screen", cleanup: ExitStack) -> tuple[str, Path]:
    """Start the embedded server unless a database is named; return its URL and the log's place."""
    from embedworker.database.embedded import server
    from embedworker.settings import obfuscate

    if chosen.database_url is not None:
        screen.fact("PostgreSQL", obfuscate(chosen.database_url))
        return chosen.database_url, chosen.cache_dir / LOG
    ran = server.status(chosen).running
    if not ran:
        cleanup.callback(_stop, chosen, screen)
    with screen.doing("PostgreSQL", "starting the embedded server") as say:
        url = server.start(chosen)
        found = server.status(chosen)
        how = "already running" if ran else "started"
        say(f"{found.version}, embedded, {how} on 127.0.0.1:{found.port}")
    return url, server.data_folder(chosen) / LOG


def _stop(chosen: "Settings", screen: "Screen") -> None:
    from embedworker.database.embedded import server

    if not server.stop_unused(chosen):
        screen.fact("kept", "the server goes on, because another process is connected to it")


def _migrate(
    url: str,
    connection: "Connection",
    screen: "Screen",
    preparation: "Preparation",
    chosen: "Settings",
) -> str | None:
    """Set the database up; return the article's model where it is not the database's default."""
    from embedworker.database.connection import keeps_session
    from embedworker.database.migrate import migrate
    from embedworker.database.rows import fetch_one
    from embedworker.database.statements import statement

    if not keeps_session(connection):
        raise DatabaseError(
            "the database URL leads through a connection pooler, and the demo needs a session of "
            "its own; name a direct address with --database-url"
        )
    if not fetch_one(connection.execute(statement("demo_lock")))[0]:
        raise DatabaseError("another demo runs in this database; wait until it has ended")
    migrated, taken = fetch_one(connection.execute(statement("demo_state"), {"mark": MARK}))
    if taken:
        raise DatabaseError(
            "there is a table demo.article that is not the demo's; rename it, or name another "
            "database with --database-url"
        )
    default: str | None = None
    with screen.doing("schema", "migrating") as say:
        choice = preparation.choice()
        if migrated:
            current, others = fetch_one(connection.execute(statement("demo_others")))
            # With a new default, workers would embed everything else in the database again.
            default = current if others else None
        remarks = migrate(
            url,
            model=None if default is not None else choice.model,
            loopback_host=chosen.loopback_host,
        )
        say(f"embed, in the database {connection.info.dbname}")
    screen.fact("model", f"{choice.model}, because {choice.reason}")
    for remark in remarks:
        screen.fact("note", remark)
    return None if default in (None, choice.model) else choice.model


def _await_articles(
    connection: "Connection", screen: "Screen", preparation: "Preparation", check: "_Watchman"
) -> None:
    """Show a bar until every article has its vector and a question gets an answer."""
    from embedworker.database.rows import fetch_one
    from embedworker.database.statements import statement
    from embedworker.demo.material import script

    started = time.monotonic()
    with screen.bar("articles") as show:
        while True:
            done, count, _ = fetch_one(connection.execute(statement("demo_progress")))
            if done == count:
                break
            check()
            if preparation.unpacking:
                show("unpacking the model", preparation.unpacked)
            elif done == 0:
                show("the worker loads the model", 0.0)
            else:
                show(f"{done} of {count} searchable", done / count)
            if time.monotonic() - started > LONGEST:
                raise EmbedworkerError(f"{done} of {count} articles after {LONGEST:g} s")
            time.sleep(POLL)
        show("the worker gets ready for questions", 1.0)
        connection.execute(statement("demo_wait"))
        connection.execute(statement("demo_search"), {"question": script().korean.question})
    took = time.monotonic() - started
    screen.fact("articles", f"all {count}, in Korean and English, are searchable", took=took)


class _Watchman:
    """Raises when the worker, the model or the source is in trouble that does not pass."""

    def __init__(
        self, connection: "Connection", process: "WorkerProcess", preparation: "Preparation"
    ) -> None:
        self._connection = connection
        self._process = process
        self._preparation = preparation
        self._well_at = time.monotonic()

    def __call__(self) -> None:
        from embedworker.database.rows import fetch_one
        from embedworker.database.statements import statement

        self._preparation.check()
        if (said := self._process.ended()) is not None:
            raise EmbedworkerError(f"the worker ended; its log says:\n{said}")
        *_, error = fetch_one(self._connection.execute(statement("demo_progress")))
        if error is None:
            self._well_at = time.monotonic()
        elif time.monotonic() - self._well_at > GRACE:
            raise EmbedworkerError(f"{error} (the worker's log: {self._process.log})")


def _say_how(
    context: typer.Context, chosen: "Settings", screen: "Screen", process: "WorkerProcess"
) -> None:
    command = _command(context)
    embedded = chosen.database_url is None
    connect = f'psql "$({command} db url)"' if embedded else "psql, as you always connect"
    stop = f"kill {process.pid}" + (f" && {command} db stop" if embedded else "")
    screen.gap()
    screen.fact("kept", "server, worker and articles go on")
    screen.fact("connect", connect)
    screen.fact("ask", f'{command} search demo.article "층간소음"')
    screen.fact("watch", f"{command} status --watch")
    screen.fact("stop", stop)
    _say_ready(screen)
    if embedded and shutil.which("psql") is None:
        from embedworker.database.embedded.account import Account
        from embedworker.database.embedded.installation import unpack
        from embedworker.database.embedded.server import data_folder

        found = unpack(data_folder(chosen), Account.unprivileged())
        screen.gap()
        screen.fact(
            "note", f"psql is not installed here; the server's own: {found.program('psql')}"
        )


def _say_ready(screen: "Screen") -> None:
    screen.gap()
    screen.fact("yours", "the table embed.document is ready for texts of your own:")
    screen.sql(
        "insert into embed.document (content) values ('…');\n"
        "select content\n"
        "from embed.document d join embed.document_embedding e using (id)\n"
        "order by e.embedding <=> (select embed.query('…')) limit 3"
    )


def _say_more(context: typer.Context, screen: "Screen") -> None:
    screen.gap()
    screen.fact("done", "worker stopped, articles removed; to go on yourself:")
    command = _command(context)
    activate = Path(sys.argv[0]).with_name("activate")
    if command != "embedworker" and activate.is_file():
        screen.fact("", f". {os.path.relpath(activate)}")
        command = command.replace(command.split()[0], "embedworker", 1)
    screen.fact("", f"{command} demo --keep")


def _command(context: typer.Context) -> str:
    """How this program was called, with the folder it was given, for lines to copy."""
    root = context.find_root()
    called = Path(sys.argv[0])
    if called.name != "embedworker":
        command = "python -m embedworker.cli"
    elif shutil.which("embedworker") == str(called):
        command = "embedworker"
    else:
        here = Path.cwd()
        command = str(called.relative_to(here) if called.is_relative_to(here) else called)
    source = root.get_parameter_source("data_dir")
    if source is not None and source.name == "COMMANDLINE":
        command += f" --data-dir {shlex.quote(str(root.params['data_dir']))}"
    return command


def _environment(context: typer.Context, url: str) -> dict[str, str]:
    """Return the global flags for the worker; a password is never on a command line."""
    given = {**(context.find_root().obj or {}), "database_url": url}
    return {
        # Nothing else waits for the cores, and the model of a niced process loads much later.
        "EMBEDWORKER_NICE": os.environ.get("EMBEDWORKER_NICE", "0"),
        # Threads of torch that wait by spinning keep each other off a busy machine's cores: a text
        # of 67 tokens took 1200 ms on two threads there, and 100 ms with this.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        **{
            f"EMBEDWORKER_{name.upper()}": str(value)
            for name, value in given.items()
            if value is not None
        },
    }


def _interrupted(_: int, __: FrameType | None) -> NoReturn:
    """SIGTERM cleans up as Ctrl-C does."""
    raise KeyboardInterrupt
