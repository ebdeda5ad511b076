"""The routes: OpenAI's ``/v1/embeddings`` and ``/v1/models``, health, readiness and metrics."""

import base64
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from embedworker.model.encoder import Encoder, Tokens, Vectors
from embedworker.service.logs import redacted
from embedworker.service.monitoring.access import Access
from embedworker.service.monitoring.metrics import Merged, build_info, families
from embedworker.serving.client import read_body, wait_for
from embedworker.serving.engine import Busy, Engine
from embedworker.serving.framing import Framed
from embedworker.serving.refusal import Refusal
from embedworker.serving.request import Limits, Request, model_and_role, parse
from embedworker.serving.request_log import OTHER, RequestLog
from embedworker.settings import Settings

__all__ = ["application"]

log = logging.getLogger("embedworker.serve")

RETRY_AT_LEAST, RETRY_AT_MOST = 1, 60  # seconds; OpenAI's client waits no longer than a minute
GUARDED = ("/v1/embeddings", "/v1/models", "/metrics")

Handler = Callable[[HttpRequest], Awaitable[Response]]


class _Service:
    """What the handlers share."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        access: Access,
        registry: CollectorRegistry,
        reasons: Callable[[], list[str]],
    ) -> None:
        self._engine = engine
        self._access = access
        self._reasons = reasons
        self._most = settings.serve_waiting + 1  # and the one that is at the model
        self._active = 0
        self._body = settings.serve_body
        self._limits = Limits(settings.serve_inputs, settings.serve_characters)
        self._default_role = settings.serve_default_role
        self._alias = settings.serve_alias
        self._started = int(time.time())
        self._merged = Merged(lambda: [*families(registry), build_info()])
        self._log = RequestLog(registry)
        Gauge(
            "embedworker_http_waiting_requests",
            "Requests that wait for the model.",
            registry=registry,
        ).set_function(lambda: engine.waiting)

    def routes(self) -> list[Route]:
        return [
            Route(path, self._watched(path, handler), methods=[method])
            for path, method, handler in (
                ("/v1/embeddings", "POST", self._embeddings),
                ("/v1/models", "GET", self._models),
                ("/v1/models/{name:path}", "GET", self._model),
                ("/metrics", "GET", self._metrics),
                ("/healthz", "GET", self._healthz),
                ("/readyz", "GET", self._readyz),
            )
        ]

    def _watched(self, path: str, handler: Handler) -> Handler:
        """Check the token, count, and write a line; never a word of what was sent."""
        label = path.partition("/{")[0]

        async def watched(request: HttpRequest) -> Response:
            started = time.monotonic()
            try:
                if label in GUARDED and not self._access.permits(
                    request.headers.get("authorization")
                ):
                    raise Refusal(
                        401,
                        "the API key is missing or wrong; send it as a bearer token",
                        code="invalid_api_key",
                        headers={"WWW-Authenticate": "Bearer"},
                    )
                response = await handler(request)
            except Refusal as refusal:
                response = refusal.response()
            except Exception as error:
                # Its words could quote a text: the log's line has its kind and its place alone.
                log.error("a request failed: %s", redacted(error), exc_info=error)
                response = Refusal(
                    500, "the texts could not be embedded", headers={"x-should-retry": "false"}
                ).response()
            self._log.note(request, label, response.status_code, time.monotonic() - started)
            return response

        return watched

    async def not_a_route(self, request: HttpRequest, error: Exception) -> Response:
        """Refuse a path that is not there, or its method."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        what = "method is not allowed" if status == 405 else "path does not exist"
        self._log.note(request, OTHER, status, 0.0)
        return Refusal(status, f"this {what}; there is POST /v1/embeddings").response()

    async def _embeddings(self, request: HttpRequest) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also what keeps a web page that somebody here looks at from asking in their name.
            raise Refusal(415, "expected the content type application/json")
        # Before the body is read: so many bodies are held in memory at most.
        if self._active >= self._most:
            raise self._busy()
        self._active += 1
        try:
            return await self._embed(request)
        except Busy:
            raise self._busy() from None
        finally:
            self._active -= 1

    def _busy(self) -> Refusal:
        """Come back when about half of what waits is done: then there is room for several."""
        wait = math.ceil(self._engine.seconds_left / 2)
        wait = min(max(wait, RETRY_AT_LEAST), RETRY_AT_MOST)
        return Refusal(
            429,
            f"{self._active} requests are under way already; try again in {wait} s",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(wait)},
        )

    async def _embed(self, request: HttpRequest) -> Response:
        body = await read_body(request, self._body)
        encoder = self._encoder()
        asked = await run_in_threadpool(
            parse,
            body,
            models=self._names(encoder),
            default_role=self._default_role,
            dimensions=encoder.dimensions,
            limits=self._limits,
        )
        tokens = await run_in_threadpool(_tokenize, encoder, asked)
        total = sum(map(len, tokens))
        request.state.fields = {
            "role": asked.role,
            "texts": len(asked.inputs),
            "tokens": total,
        }
        vectors = await wait_for(request, self._engine.submit(tokens))
        content = await run_in_threadpool(_answer, asked, vectors, total)
        return Response(content, media_type="application/json")

    async def _models(self, _: HttpRequest) -> Response:
        names = [
            name + role
            for name in self._names(self._encoder())
            for role in ("", ":query", ":passage")
        ]
        return JSONResponse({"object": "list", "data": [self._card(each) for each in names]})

    async def _model(self, request: HttpRequest) -> Response:
        name, _ = model_and_role(request.path_params["name"], self._names(self._encoder()))
        return JSONResponse(self._card(name))

    def _names(self, encoder: Encoder) -> list[str]:
        return [encoder.fingerprint.model, *([self._alias] if self._alias else [])]

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "embedworker",
        }

    async def _metrics(self, request: HttpRequest) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._merged), headers={"content-type": kind})

    async def _healthz(self, _: HttpRequest) -> Response:
        return JSONResponse({"alive": True})

    async def _readyz(self, _: HttpRequest) -> Response:
        reasons = self._reasons()
        return JSONResponse(
            {"ready": not reasons, "reasons": [{"part": "http", "reason": r} for r in reasons]},
            status_code=503 if reasons else 200,
        )

    def _encoder(self) -> Encoder:
        encoder = self._engine.encoder
        if encoder is None:
            raise Refusal(
                503, "the model is being loaded; try again later", headers={"Retry-After": "5"}
            )
        return encoder


def application(
    settings: Settings,
    engine: Engine,
    access: Access,
    registry: CollectorRegistry,
    reasons: Callable[[], list[str]],
) -> Starlette:
    """Return the ASGI application over a running engine; ``reasons`` say why it is not ready."""
    service = _Service(settings, engine, access, registry, reasons)

    app = Starlette(
        routes=service.routes(), exception_handlers={HTTPException: service.not_a_route}
    )
    app.add_middleware(Framed)
    # /metrics/ would lead to wherever the client's Host header says.
    app.router.redirect_slashes = False
    return app


def _tokenize(encoder: Encoder, asked: Request) -> list[Tokens]:
    """Raise Refusal if a text is longer than the model's window, as OpenAI's API does."""
    tokenize = encoder.tokenize_queries if asked.role == "query" else encoder.tokenize_passages
    tokens = tokenize(asked.inputs)
    for place, made in enumerate(tokens):
        if made.truncated:
            raise Refusal(
                400,
                f"This model's maximum context length is {encoder.max_tokens} tokens, however"
                f" input[{place}] has {made.total} (prefix included). Please send shorter texts.",
                param="input",
                code="context_length_exceeded",
            )
    return tokens


def _answer(asked: Request, vectors: Vectors, tokens: int) -> bytes:
    exact = vectors.astype("<f4")

    def shown(vector: np.ndarray[Any, Any]) -> Any:
        if asked.base64:
            return base64.b64encode(vector.tobytes()).decode("ascii")
        return vector.tolist()

    return json.dumps(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": shown(vector)}
                for index, vector in enumerate(exact)
            ],
            "model": asked.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    ).encode()
