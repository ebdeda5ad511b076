"""The steps of ``embedworker eval``, with a worker in this process and a bar on a terminal."""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from worker.cli.console import console, note
from worker.cli.database import Connection, find_table
from worker.database.rows import one
from worker.database.statements import statement
from worker.errors import EmbedworkerError
from worker.queue.source import load_sources
from worker.search.beir import Collection, read_beir, read_questions
from worker.search.collection import (
    Searched,
    analyze,
    claim_schema,
    drop_collection,
    embedded,
    find_source,
    load_collection,
    own_collection,
)
from worker.search.evaluate import Setting, ask
from worker.search.report import report
from worker.service.indexing import Indexer
from worker.service.worker import Worker

if TYPE_CHECKING:
    from worker.settings import Settings

__all__ = ["Evaluation"]

TABLE = "embedworker_eval.document"
LOOK = 0.2  # seconds between looks at how many documents are embedded
QUERY_TIMEOUT = "1min"  # the longest that embed.query waits
PATIENCE = 600.0  # seconds for the model of the questions, which may have to be downloaded
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
        with _bar("documents", len(self.collection.documents)) as show:
            self._embed(show)
        self.source = find_source(self._connection, find_table(self._connection, TABLE).oid)
        self._check_progress()
        if any(setting.road == "hnsw" for setting in asked) and self.source.index is None:
            self._build_index()
        analyze(self._connection, self.source)

    def use(self, table: str, name: str | None, questions: Path) -> None:
        """Take a table that is enabled already, and a person's questions about it."""
        own = read_questions(questions)
        found = find_table(self._connection, table)
        self.source = find_source(self._connection, found.oid, name)
        self.collection = own_collection(self._connection, self.source, questions.name, own)
        rows, pending, _, _ = self._progress()
        if pending:
            note(f"{pending} of {rows} rows of {found.shown} wait to be embedded and are not found")

    def run(self, asked: list[Setting], k: int, *, quick: bool = False) -> dict[str, Any]:
        """Ask every question in every setting and return the report."""
        count = len(self.collection.questions)
        with self._answering() as worker, _bar("questions", count) as show:
            self._await_worker(worker)
            answers = ask(
                self._connection, self.source, self.collection, asked, k, show, quick=quick
            )
        return report(self._connection, self.source, self.collection, answers, k)

    def _drop(self) -> None:
        # The lost connection may be why it ends; the next evaluation drops the table, too.
        with suppress(psycopg.OperationalError):
            drop_collection(self._connection)

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
            (error,) = one(self._connection.execute(statement("evaluate_failure"), asked))
        if pending or dead:
            raise EmbedworkerError(
                f"of {rows} documents {pending} are not embedded yet and {dead} were given up"
                + (f": {error}" if error else "; another worker may hold them: try again")
            )

    def _progress(self) -> tuple[Any, ...]:
        asked = {"relation": self.source.relation, "name": self.source.name}
        return one(self._connection.execute(statement("evaluate_progress"), asked))

    def _build_index(self) -> None:
        source = next(s for s in load_sources(self._connection) if s.id == self.source.id)
        indexer = Indexer(self._url, after_rows=1)
        indexer.consider(self._connection, source)
        indexer.wait()
        self.source = find_source(self._connection, self.source.relation, self.source.name)

    @contextmanager
    def _answering(self) -> Iterator[Future[None]]:
        worker = Worker(self._url, self._settings, lanes=["questions"], exit_when_hung=True)
        with _in_thread(worker, worker.run) as run:
            yield run

    def _await_worker(self, worker: Future[None]) -> None:
        self._connection.execute(statement("evaluate_timeouts"), {"timeout": QUERY_TIMEOUT})
        asked = {
            "question": next(iter(self.collection.questions.values())),
            "model": self.source.model,
        }
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._connection.execute(statement("evaluate_warm"), asked)
            except psycopg.DatabaseError as error:
                if worker.done():
                    worker.result()
                if error.sqlstate != NO_WORKER or time.monotonic() > deadline:
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
def _bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; the function takes how many are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    shown = console(stderr=True)
    with Progress(
        TextColumn(f"{label:9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=shown,
        transient=True,
        disable=not shown.is_terminal,
    ) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)
