"""The pages: each reads what it shows in one transaction and fills in a template."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from embedworker import figures
from embedworker.database.refusal import refusal
from embedworker.errors import ConfigurationError, EmbedworkerError
from embedworker.search.marking import Piece
from embedworker.search.steps import Hit
from embedworker.service.doctor import Finding
from embedworker.settings import Settings
from embedworker.state.rows import Found, NumberedStatus
from embedworker.state.store import Store
from embedworker.web.access import Visitor
from embedworker.web.chart import HEIGHT, WIDTH, chart
from embedworker.web.watch import Watch
from embedworker.web.words import LANGUAGES, say

__all__ = ["Pages", "Request", "complaint"]

ACTIONS = ("pause", "resume", "sweep", "retry", "cut-over", "roll-back", "end-switch")
HITS = 10
RERANK = 20  # rows that a cross-encoder reads
DEEPEST = 1000  # rows that can be skipped
LONGEST_QUESTION = 2000  # characters; longer than any model's window reads
LONGEST_WAIT = 60.0  # seconds that embed.query waits at most
WELL = ("ready", "embedding", "paused")
_SQL = re.compile(
    r"\b((?:alter|create|drop|grant|revoke|select|reset|set|analyze|reindex) [^;.]*?[^;]*?;|"
    r"select embed\.\w+\([^;]*?\))"
)


@dataclass(frozen=True, slots=True)
class Request:
    """What a page must know of who asks, and for what."""

    path: str
    query: Mapping[str, str]
    language: str
    visitor: Visitor | None


@dataclass(frozen=True, slots=True)
class _Asked:
    """The fields of the search form."""

    table: str
    question: str
    condition: str
    compared: bool
    rerank: bool
    skip: int

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "_Asked":
        return cls(
            table=query.get("table", ""),
            question=query.get("q", "")[:LONGEST_QUESTION],
            condition=query.get("where", "")[:LONGEST_QUESTION],
            compared=query.get("compare") == "1",
            rerank=query.get("rerank") == "1",
            skip=_number(query.get("skip"), 0, DEEPEST),
        )

    def settings(self) -> list[tuple[str, float | None]]:
        """Return the weights of the words to search with, None for that of the table."""
        both: tuple[str, float | None] = ("both", None)
        return [both, ("meaning", 0.0)] if self.compared else [both]

    def matching(self) -> dict[str, str] | None:
        """Read the condition, COLUMN=VALUE. Raises ConfigurationError for another form."""
        if not self.condition.strip():
            return None
        column, sign, value = self.condition.partition("=")
        if not sign:
            raise ConfigurationError(
                f"{self.condition!r} is no condition; expected COLUMN=VALUE, for example lang=ko"
            )
        return {column.strip(): value.strip()}

    def page(self, skip: int) -> dict[str, str]:
        """Return the fields of the same search, ``skip`` rows further."""
        given = {"table": self.table, "q": self.question, "where": self.condition}
        given |= {"compare": "1" if self.compared else "", "rerank": "1" if self.rerank else ""}
        given |= {"skip": str(max(skip, 0) or "")}
        return {name: value for name, value in given.items() if value}


class Pages:
    """Fills in the templates. ``base`` is the path prefix, without a slash at its end."""

    def __init__(self, store: Store, watch: Watch, settings: Settings) -> None:
        self.base = settings.web_path.rstrip("/")
        self.actions = settings.web_allow_actions
        self._store = store
        self._watch = watch
        self._timeout = min(settings.query_timeout, LONGEST_WAIT)
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            count=figures.count, percent=figures.percent, size=figures.size, span=figures.span
        )

    def overview(self, request: Request) -> str:
        """Show what is wrong first, then the numbers and the last hour."""
        with self._store.look() as look:
            rights = look.rights()
            sources = look.status() if rights.status else []
            workers = look.workers() if rights.status else []
            waiting = look.questions_waiting() if rights.questions else None
        findings = self._watch.findings or []
        return self._fill(
            "overview.html",
            request,
            rights=rights,
            sources=sources,
            ailing=[source for source in sources if source.state not in WELL],
            totals=_totals(sources),
            workers=workers,
            waiting=waiting,
            answered_per_second=self._watch.questions_per_second,
            wrong=[_advised(f) for f in findings if f.state in ("problem", "warning")],
            examined_at=self._watch.examined_at,
            chart=chart(list(self._watch.minutes), int(time.time() // 60)),
            width=WIDTH,
            height=HEIGHT,
        )

    def tables(self, request: Request) -> str:
        """Show every enabled table, a line each."""
        with self._store.look() as look:
            rights = look.rights()
            sources = look.status() if rights.status else []
            switches = look.switches() if rights.status else []
        return self._fill("tables.html", request, rights=rights, sources=sources, switches=switches)

    def table(self, request: Request, number: int) -> str:
        """Show one table: state, sizes, failures, and what can be done."""
        with self._store.look() as look:
            source = look.source(number)
            (status,) = look.status(number)
            failures = look.failures(number)
        return self._fill(
            "table.html", request, id=number, source=source, status=status, failures=failures
        )

    def failures(self, request: Request) -> str:
        """Show the rows that failed, by table and reason."""
        with self._store.look() as look:
            rights = look.rights()
            failures = look.failures() if rights.status else []
        return self._fill("failures.html", request, rights=rights, failures=failures)

    def search(self, request: Request) -> str:
        """Show the box, and what was found."""
        asked = _Asked.of(request.query)
        error: str | None = None
        columns: list[tuple[str, Found]] = []
        remarks: list[str] = []
        took = 0.0
        # A worker answers the question within the statement, so that may take longer.
        with self._store.look(self._timeout + 10) as look:
            tables = look.searchable()
            relation = dict(tables).get(asked.table)
            if asked.question.strip() and relation is not None:
                started = time.monotonic()
                try:
                    for title, lexical in asked.settings():
                        found = look.search(
                            relation,
                            asked.question,
                            HITS,
                            lexical=lexical,
                            rerank=RERANK if asked.rerank else None,
                            matching=asked.matching(),
                            skip=asked.skip,
                            timeout=self._timeout,
                        )
                        columns.append((title, found))
                        remarks += [said for said in found.remarks if said not in remarks]
                except (psycopg.Error, EmbedworkerError) as refused:
                    error = complaint(refused)
                took = time.monotonic() - started
        return self._fill(
            "search.html",
            request,
            tables=tables,
            asked=asked,
            columns=[
                (title, list(map(_shown, found.hits, found.passages))) for title, found in columns
            ],
            degraded=any(found.hits.degraded for _, found in columns),
            full=any(len(found.hits) == HITS for _, found in columns),
            step=HITS,
            remarks=remarks,
            unknown=bool(asked.table and relation is None),
            error=error,
            took=took,
        )

    def login(self, request: Request, *, refused: bool = False) -> str:
        """Ask for the token."""
        return self._fill("login.html", request, refused=refused)

    def error(self, request: Request, status: int, message: str) -> str:
        """Say what went wrong."""
        return self._fill("error.html", request, status=status, message=message)

    def _fill(self, template: str, request: Request, **values: Any) -> str:
        def t(key: str, **given: object) -> str:
            return say(request.language, key, **given)

        def url(path: str, **query: object) -> str:
            return f"{self.base}{path}{f'?{urlencode(query)}' if query else ''}"

        done = request.query.get("done", "")
        return self._templates.get_template(template).render(
            t=t,
            url=url,
            here=request.path,
            language=request.language,
            languages=LANGUAGES,
            csrf=request.visitor.csrf if request.visitor else "",
            visitor=request.visitor,
            actions=self.actions,
            done=done if done in ACTIONS else "",
            done_rows=_number(request.query.get("rows"), 0, 10**12),
            **values,
        )


def complaint(error: BaseException) -> str:
    """Return what the server or a part of ours says, without a text of a row.

    Raises the error again where it is a fault of the program.
    """
    if isinstance(error, EmbedworkerError):
        return str(error)
    found = refusal(error)
    if found is None:
        raise error
    return str(found)


def _totals(sources: list[NumberedStatus]) -> dict[str, Any]:
    def total(name: str) -> Any:
        known = [value for source in sources if (value := getattr(source, name)) is not None]
        return sum(known) if known else None

    rows, embedded = total("rows"), total("embedded")
    waits = [source.oldest_wait for source in sources if source.oldest_wait is not None]
    return {
        "rows": rows,
        "embedded": embedded,
        "coverage": None if not rows else min(embedded / rows, 1),
        "pending": total("pending"),
        "dead": total("dead"),
        "oldest_wait": max(waits, default=None),
        "rows_per_second": total("rows_per_second"),
    }


def _advised(finding: Finding) -> dict[str, Any]:
    """Return a finding, and the statements in its advice for copying."""
    return {
        "state": finding.state,
        "subject": finding.subject,
        "check": finding.check,
        "detail": finding.detail,
        "advice": finding.advice,
        "statements": [found[1] for found in _SQL.finditer(finding.advice or "")],
    }


def _shown(hit: Hit, passage: list[Piece]) -> dict[str, Any]:
    # The similarity is null where no worker answers, and the words alone rank the rows.
    words = None if hit.bm25 is None else max(hit.score - (hit.similarity or 0.0), 0.0)
    return {
        "key": ", ".join(f"{name}={value}" for name, value in hit.key.items()),
        "score": hit.score,
        "meaning": hit.similarity,
        "words": words if hit.reranked is None else None,
        "reranked": hit.reranked,
        "passage": passage,
    }


def _number(text: str | None, default: int, most: int) -> int:
    if text is None or not (text.isascii() and text.isdigit()):
        return default
    return min(int(text[:12]), most)
