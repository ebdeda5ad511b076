"""The routes of the page, and what holds for all of them: token, headers, path prefix, errors."""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import psycopg
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedworker.errors import EmbedworkerError, SourceError
from embedworker.service.logs import redacted
from embedworker.settings import Settings
from embedworker.state.store import Change, Store
from embedworker.web.access import Access, Visitor
from embedworker.web.pages import Pages, Request, complaint
from embedworker.web.watch import Watch
from embedworker.web.words import LANGUAGES, language_of

__all__ = ["application"]

log = logging.getLogger("embedworker.web")

LONGEST_FORM = 16_384  # bytes
FORM_TIMEOUT = 10.0  # seconds that a client may take to send it
COOKIE_AGE = 30 * 86_400  # seconds
HEADERS = {
    # No script but ours and no style in the page: what a text of a row holds is never run.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

BACK = {"failures": "/failures", "tables": "/tables"}  # pages with forms, besides that of a table

Show = Callable[[Request, HttpRequest], str]
Form = dict[str, str]


def application(
    settings: Settings, access: Access, store: Store, watch: Watch, *, port: int = 0
) -> Starlette:
    """Return the ASGI application. ``port`` separates the cookies of several pages."""
    site = _Site(settings, access, store, watch, f"embedworker_{port}")
    app = Starlette(
        routes=site.routes(),
        exception_handlers={HTTPException: site.not_there, Exception: site.failed},
    )
    app.router.redirect_slashes = False
    app.add_middleware(_Wrapped, base=site.pages.base)
    return app


class _Site:
    """What the handlers share."""

    def __init__(
        self, settings: Settings, access: Access, store: Store, watch: Watch, cookie: str
    ) -> None:
        self.pages = Pages(store, watch, settings)
        self._access = access
        self._store = store
        self._cookie = cookie

    def routes(self) -> list[BaseRoute]:
        pages = self.pages
        return [
            Route("/", self._page(lambda seen, _: pages.overview(seen))),
            Route("/tables", self._page(lambda seen, _: pages.tables(seen))),
            Route(
                "/tables/{id:int}",
                self._page(lambda seen, http: pages.table(seen, http.path_params["id"])),
            ),
            Route("/failures", self._page(lambda seen, _: pages.failures(seen))),
            Route("/search", self._page(lambda seen, _: pages.search(seen))),
            Route("/login", self._log_in, methods=["POST"]),
            Route("/tables/{id:int}/{action}", self._act, methods=["POST"]),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
        ]

    def _page(self, show: Show) -> Callable[[HttpRequest], Any]:
        async def page(http: HttpRequest) -> Response:
            if (chosen := http.query_params.get("lang")) in LANGUAGES:
                return self._choose_language(http, str(chosen))
            given = http.query_params.get("token")
            if given is not None:
                return self._enter(http, self._access.by_token(given), http.url.path)
            visitor = self._visitor(http)
            seen = self._request(http, visitor)
            if visitor is None:
                return HTMLResponse(self.pages.login(seen), 401)
            _check_texts(seen.query)
            return await self._answer(seen, lambda: HTMLResponse(show(seen, http)))

        return page

    async def _answer(self, seen: Request, work: Callable[[], Response]) -> Response:
        """Do the work in a thread; what the database refuses is a page of its own."""
        try:
            return await run_in_threadpool(work)
        except (psycopg.Error, EmbedworkerError) as error:
            status = 404 if isinstance(error, SourceError) else 503
            if isinstance(error, psycopg.errors.InsufficientPrivilege):
                status = 403
            elif isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith("EW"):
                status = 409
            return HTMLResponse(self.pages.error(seen, status, complaint(error)), status)

    async def _log_in(self, http: HttpRequest) -> Response:
        form = await _form(http)
        return self._enter(http, self._access.by_token(form.get("token", "")), "/")

    async def _act(self, http: HttpRequest) -> Response:
        visitor = self._visitor(http)
        seen = self._request(http, visitor)
        if visitor is None:
            return HTMLResponse(self.pages.login(seen), 401)
        form = await _form(http)
        if not _same(form.get("csrf", ""), visitor.csrf):
            raise HTTPException(403, "this form is of another session; open the page again")
        if not self.pages.actions:
            raise HTTPException(
                403, "this page only reads; start it with `embedworker web --allow-actions`"
            )
        number, action = http.path_params["id"], http.path_params["action"]
        return await self._answer(seen, lambda: self._acted(http, visitor, number, action, form))

    def _acted(
        self, http: HttpRequest, visitor: Visitor, number: int, action: str, form: Form
    ) -> Response:
        with self._store.change() as change:
            login = change.rights().login
            source, rows = _do(change, number, action, form)
        fields = {
            "action": action,
            "source": source,
            "rows": rows,
            "login": login,
            "token": visitor.name,
            "address": http.client.host if http.client else "unknown",
        }
        log.info(
            "%s",
            " ".join(f"{name}={value}" for name, value in fields.items() if value is not None),
            extra={"fields": fields},
        )
        back = BACK.get(form.get("back", ""), f"/tables/{number}")
        done = {"done": action} | ({} if rows is None else {"rows": str(rows)})
        return RedirectResponse(f"{self.pages.base}{back}?{urlencode(done)}", 303)

    def _enter(self, http: HttpRequest, visitor: Visitor | None, path: str) -> Response:
        if visitor is None:
            seen = self._request(http, None)
            return HTMLResponse(self.pages.login(seen, refused=True), 401)
        answer = RedirectResponse(f"{self.pages.base}{path}", 303)
        self._set_cookie(answer, self._cookie, visitor.cookie)
        return answer

    def _choose_language(self, http: HttpRequest, language: str) -> Response:
        query = [(k, v) for k, v in http.query_params.multi_items() if k not in ("lang", "token")]
        path = f"{self.pages.base}{http.url.path}{f'?{urlencode(query)}' if query else ''}"
        answer = RedirectResponse(path, 303)
        self._set_cookie(answer, f"{self._cookie}_lang", language)
        return answer

    def _set_cookie(self, answer: Response, name: str, value: str) -> None:
        answer.set_cookie(
            name,
            value,
            max_age=COOKIE_AGE,
            path=f"{self.pages.base}/",
            httponly=True,
            samesite="lax",
        )

    def _visitor(self, http: HttpRequest) -> Visitor | None:
        return self._access.by_cookie(http.cookies.get(self._cookie))

    def _request(self, http: HttpRequest, visitor: Visitor | None) -> Request:
        return Request(
            path=http.url.path,
            query=dict(http.query_params),
            language=language_of(
                http.cookies.get(f"{self._cookie}_lang"), http.headers.get("accept-language", "")
            ),
            visitor=visitor,
        )

    async def not_there(self, http: HttpRequest, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        said = str(error.detail) if isinstance(error, HTTPException) else ""
        seen = self._request(http, self._visitor(http))
        return HTMLResponse(self.pages.error(seen, status, said), status)

    async def failed(self, http: HttpRequest, error: Exception) -> Response:
        """Answer a fault of ours; its words could quote a text, so they stay out of the page."""
        log.error("a page could not be made: %s", redacted(error), exc_info=error)
        seen = self._request(http, self._visitor(http))
        return HTMLResponse(self.pages.error(seen, 500, "the log says more"), 500)


def _do(change: Change, number: int, action: str, form: Form) -> tuple[str, int | None]:
    """Do what a person asked for; return the table, and the number of rows where it is known."""
    match action:
        case "pause":
            return change.tell("cli_pause", number), None
        case "resume":
            return change.tell("cli_resume", number), None
        case "sweep":
            return change.sweep(number), None
        case "cut-over":
            return change.switch("switch_cut_over", number, force=False), None
        case "roll-back":
            return change.switch("switch_roll_back", number), None
        case "end-switch":
            return change.switch("switch_end", number), None
        case "retry" if "row" in form:
            if not (form["row"].isascii() and form["row"].isdecimal()):
                raise HTTPException(400, "row is not a number")
            return change.retry(number, row=int(form["row"]), error=None)
        case "retry" if "alike" in form:
            return change.retry(number, row=None, error=form.get("error"))
        case "retry":
            return change.tell("cli_retry", number), None
    raise HTTPException(404, f"there is no action {action!r}")


async def _form(http: HttpRequest) -> Form:
    """Read a form of a few fields. A form of another site cannot carry our CSRF token."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "expected the content type application/x-www-form-urlencoded")
    body = bytearray()
    try:
        async with asyncio.timeout(FORM_TIMEOUT):
            async for chunk in http.stream():
                body += chunk
                if len(body) > LONGEST_FORM:
                    raise HTTPException(413, f"the form is longer than {LONGEST_FORM} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the form did not arrive within {FORM_TIMEOUT:g} s") from None
    try:
        read = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise HTTPException(400, "the form cannot be read") from None
    form = {name: values[-1] for name, values in read.items()}
    _check_texts(form)
    return form


def _check_texts(values: Mapping[str, str]) -> None:
    """Refuse the character U+0000, which no text of PostgreSQL can hold."""
    for name, value in values.items():
        if "\0" in value:
            raise HTTPException(400, f"{name!r} holds the character U+0000 (NUL); leave it out")


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


class _Wrapped:
    """Takes the path prefix away and adds the headers; writes how long each answer took.

    A proxy may hand the path on with its prefix or without.
    """

    def __init__(self, app: ASGIApp, base: str) -> None:
        self._app = app
        self._base = base

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if self._base and (path == self._base or path.startswith(f"{self._base}/")):
            inner = path[len(self._base) :] or "/"
            scope = {**scope, "path": inner, "raw_path": inner.encode()}
        started = time.monotonic()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name.lower() for name, _ in message["headers"]}
                added = [
                    (name.lower().encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.lower().encode() not in known
                ]
                message = {**message, "headers": [*message["headers"], *added]}
                log.debug(
                    "%s %s %s %d ms",
                    scope["method"],
                    scope["path"],
                    message["status"],
                    round(1000 * (time.monotonic() - started)),
                )
            await send(message)

        await self._app(scope, receive, send_with_headers)
