"""The process behind ``embedworker serve``."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from embedworker.model import Encoder, open_encoder
from embedworker.model.availability import availability
from embedworker.model.cpu import cpu_quota
from embedworker.service.monitoring.access import guard, listen
from embedworker.service.monitoring.health import Telemetry
from embedworker.serving.application import application
from embedworker.serving.engine import LANE, Engine
from embedworker.serving.http_connection import HttpConnection
from embedworker.settings import Settings

__all__ = ["serve"]

log = logging.getLogger("embedworker.serve")

GRACE = 30  # seconds that requests under way have when the process is asked to end
KEEP_ALIVE = 75  # seconds; longer than clients and proxies keep an idle connection
BACKLOG = 128  # and so many are accepted before the first of them is counted
WATCH = 0.2  # seconds between looks at whether the model's thread still lives


def serve(settings: Settings) -> None:
    """Answer requests until SIGTERM or SIGINT; those under way are answered first.

    Raises:
        ConfigurationError: the address is not available, or is public without a token.
        ModelError: the model cannot be loaded.
    """
    access = guard(
        "EMBEDWORKER_SERVE",
        settings.serve_host,
        settings.serve_token,
        settings.serve_token_file,
    )
    if availability(settings.model, settings.cache_dir) == "missing":
        _open(settings)  # says what is missing, before anything says that this listens
    telemetry = Telemetry(LANE)
    engine = Engine(lambda: _open(settings), waiting=settings.serve_waiting, telemetry=telemetry)

    def reasons() -> list[str]:
        if engine.encoder is None:
            return ["the model is being loaded"]
        at_model = telemetry.health.state().at_model
        if at_model is not None and at_model > settings.stalled_after:
            return [f"a batch has been with the model for {at_model:.0f} s"]
        return []

    app = application(settings, engine, access, telemetry.metrics.registry, reasons)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=HttpConnection,
            ws="none",
            backlog=BACKLOG,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
            timeout_graceful_shutdown=GRACE,
            timeout_keep_alive=KEEP_ALIVE,
        )
    )
    app.router.lifespan_context = _watching(engine, server)
    listening = listen("EMBEDWORKER_SERVE", settings.serve_host, settings.serve_port, BACKLOG)
    host, port = listening.getsockname()[:2]

    def end(number: int, _: FrameType | None) -> None:
        # Before uvicorn has handlers of its own, and after, when it raises the signal again.
        log.info("%s: ending in order", signal.Signals(number).name)
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    engine.start()
    log.info(
        "listening on http://%s:%s; a text without a role is a %s",
        f"[{host}]" if ":" in host else host,
        port,
        settings.serve_default_role,
    )
    server.run(sockets=[listening])
    if engine.error is not None:
        raise engine.error
    engine.stop()


def _open(settings: Settings) -> Encoder:
    return open_encoder(
        settings.model,
        query_prefix=settings.query_prefix,
        passage_prefix=settings.passage_prefix,
        cache_folder=settings.cache_dir,
        engine=settings.engine,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads or cpu_quota(),
        token_budget=settings.batch_tokens,
    )


def _watching(engine: Engine, server: uvicorn.Server):  # type: ignore[no-untyped-def]  # Starlette's own type is private
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async def watch() -> None:
            while engine.is_alive():
                await asyncio.sleep(WATCH)
            server.should_exit = True

        task = asyncio.create_task(watch())
        yield
        task.cancel()

    return lifespan
