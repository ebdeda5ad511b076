"""The steps of ``embedworker eval``, with a worker in this process and a bar on a terminal."""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from embedworker.cli.console import console, note
from embedworker.cli.database import LOCK_TIMEOUT, Connection, find_table
from embedworker.database.connect import connect, is_lost
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.errors import EmbedworkerError, ServerUnavailable
from embedworker.queue.source import load_sources
from embedworker.search.beir import Collection, read_beir, read_questions
from embedworker.search.collection import (
    Searched,
    analyze,
    claim_schema,
    drop_collection,
    embedded,
    find_source,
    load_collection,
    own_collection,
)
from embedworker.search.evaluate import Setting, ask
from embedworker.search.judgements import judged_collection
from embedworker.search.report import report
from embedworker.service.indexing import Indexer
from embedworker.service.worker import Worker
from embedworker.settings.worker import index_memory

if TYPE_CHECKING:
    from embedworker.settings import Settings

__all__ = ["Evaluation", "progress_bar"]

TABLE = "embedworker_eval.document"
LOOK = 0.2  # seconds between looks at how many documents are embedded
QUERY_TIMEOUT = "1min"  # the longest that embed.query waits
LONGEST = 600.0  # seconds for the model of the questions, which may have to be downloaded
NO_WORKER = "EW001"

T = TypeVar("T")


class Evaluation:
    """First :meth:`load` or :meth:`use`, then :meth:`run`. What was made goes with ``cleanup``."""

    source: Searched
    collection: Collection

    def __init__(
        self, connection: Connection, url: str, settings: "Settings", cleanup: ExitStack
    ) -> None:
        self._connection = connection
        self._url = url
        self._settings = settings
        self._cleanup = cleanup
        cleanup.callback(lambda: self._connection.close())  # the last step: others still use it
        # What stops an evaluation is said by it, once; the rest is about other tables.
        logging.getLogger("embedworker").setLevel(logging.CRITICAL)

    def load(
        self, folder: Path, asked: list[Setting], *, model: str | None, chunk: bool, keep: bool
    ) -> None:
        """Make a table of a benchmark and have a worker embed it."""
        self.collection = read_beir(folder)
        claim_schema(self._connection)
        if not keep:
            self._cleanup.callback(self._drop)
        load_collection(self._connection, self.collection, model=model, chunk=chunk)
        with progress_bar("documents", len(self.collection.documents)) as show:
            self._again(lambda: self._embed(show))
        self.source = find_source(self._connection, find_table(self._connection, TABLE).oid)
        self._check_progress()
        if any(setting.path == "hnsw" for setting in asked) and self.source.index is None:
            self._build_index()
        analyze(self._connection, self.source)

    def use(self, table: str, name: str | None, questions: Path | None) -> None:
        """Take an enabled table, and a person's questions about it, or without any its judged ones.

        Raises SourceError where too few questions are judged.
        """
        own = [] if questions is None else read_questions(questions)
        found = find_table(self._connection, table)
        self.source = find_source(self._connection, found.oid, name)
        if questions is None:
            self.collection = judged_collection(self._connection, self.source)
        else:
            self.collection = own_collection(self._connection, self.source, questions.name, own)
        rows, pending, _, _ = self._progress()
        if pending:
            note(f"{pending} of {rows} rows of {found.shown} wait to be embedded and are not found")

    def run(self, asked: list[Setting], k: int, *, quick: bool = False) -> dict[str, Any]:
        """Ask every question in every setting and return the report."""
        count = len(self.collection.questions)
        with self._answering() as worker, progress_bar("questions", count) as show:
            self._await_worker(worker)

            def reconnect() -> Connection:
                self._reconnect()
                self._await_worker(worker)
                return self._connection

            answers = ask(
                self._connection,
                self.source,
                self.collection,
                asked,
                k,
                show,
                quick=quick,
                reconnect=reconnect,
            )
        return report(self._connection, self.source, self.collection, answers, k)

    def _drop(self) -> None:
        # The lost connection may be why it ends; the next evaluation drops the table, too.
        with suppress(psycopg.OperationalError):
            drop_collection(self._connection)

    def _again(self, step: Callable[[], T]) -> T:
        """Do a step that may be repeated; do it again when the server was lost meanwhile."""
        while True:
            try:
                return step()
            except (psycopg.OperationalError, ServerUnavailable) as error:
                if not is_lost(error):
                    raise
                self._reconnect()

    def _reconnect(self) -> None:
        """Wait for the server, for LONGEST seconds at most, and connect to it again."""
        note("the server was lost; the evaluation goes on when it is back")
        deadline = time.monotonic() + LONGEST
        self._connection.close()
        while True:
            try:
                self._connection = connect(
                    self._url, lock_timeout=LOCK_TIMEOUT, application_name="embedworker cli"
                )
                break
            except ServerUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK)

    def _embed(self, show: Callable[[int], None]) -> None:
        worker = Worker(self._url, self._settings, lanes=["passages"], exit_when_hung=True)
        with _in_thread(worker, worker.run_once) as run:
            while not run.done():
                show(embedded(self._connection))
                wait([run], timeout=LOOK)
            show(embedded(self._connection))
            troubles = run.result()
        (reason,) = self._connection.execute(statement("evaluate_trouble")).fetchone() or (None,)
        if reason is not None:
            raise EmbedworkerError(f"the documents cannot be embedded: {reason}")
        for trouble in troubles:
            note(trouble)  # other tables of this database

    def _check_progress(self) -> None:
        rows, pending, dead, error = self._progress()
        if dead:
            asked = {"relation": self.source.relation}
            (error,) = fetch_one(self._connection.execute(statement("evaluate_failure"), asked))
        if pending or dead:
            raise EmbedworkerError(
                f"of {rows} documents {pending} are not embedded yet and {dead} were given up"
                + (f": {error}" if error else "; another worker may hold them: try again")
            )

    def _progress(self) -> tuple[Any, ...]:
        asked = {"relation": self.source.relation, "name": self.source.name}
        return fetch_one(self._connection.execute(statement("evaluate_progress"), asked))

    def _build_index(self) -> None:
        source = next(s for s in load_sources(self._connection) if s.id == self.source.id)
        indexer = Indexer(self._url, after_rows=1, memory=index_memory())
        indexer.build_all(self._connection, source)
        self.source = find_source(self._connection, self.source.relation, self.source.name)

    @contextmanager
    def _answering(self) -> Iterator[Future[None]]:
        worker = Worker(self._url, self._settings, lanes=["questions"], exit_when_hung=True)
        with _in_thread(worker, worker.run) as run:
            yield run

    def _set_timeouts(self) -> None:
        self._connection.execute(statement("evaluate_timeouts"), {"timeout": QUERY_TIMEOUT})

    def _await_worker(self, worker: Future[None]) -> None:
        asked = {
            "question": next(iter(self.collection.questions.values())),
            "model": self.source.model,
        }
        deadline = time.monotonic() + LONGEST
        while True:
            try:
                self._set_timeouts()
                self._connection.execute(statement("evaluate_warm"), asked)
            except psycopg.DatabaseError as error:
                if worker.done():
                    worker.result()
                if self._connection.closed:
                    self._reconnect()
                elif error.sqlstate != NO_WORKER or time.monotonic() > deadline:
                    raise
            else:
                return


@contextmanager
def _in_thread(worker: Worker, run: Callable[[], T]) -> Iterator[Future[T]]:
    with ThreadPoolExecutor(1, thread_name_prefix="evaluation") as pool:
        try:
            yield pool.submit(run)
        finally:
            worker.stop()


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, nothing elsewhere; the function takes the number that is done."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    shown = console(stderr=True)
    with Progress(
        TextColumn(f"{label:9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=shown,
        transient=True,
        disable=not shown.is_terminal,
    ) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)
