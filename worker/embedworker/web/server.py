"""The process behind ``embedworker web``."""

import logging
import signal
from types import FrameType

import uvicorn

from embedworker.service.monitoring.access import is_loopback, listen
from embedworker.settings import Settings
from embedworker.state.store import Store
from embedworker.web.access import Access
from embedworker.web.application import application
from embedworker.web.watch import Watch

__all__ = ["serve"]

log = logging.getLogger("embedworker.web")

GRACE = 5  # seconds that requests under way have when the process is asked to end
BACKLOG = 128
CONNECTIONS = 100  # at once


def serve(url: str, settings: Settings) -> None:
    """Answer until SIGTERM or SIGINT. ``url`` is that of the database.

    Prints the address to open, with a token where the settings have none.

    Raises:
        ConfigurationError: nothing can listen at the address, or the token is too short.
        DatabaseError: the database cannot be reached, or is not set up for embedworker.
    """
    access = Access(settings)
    store = Store(url)
    with store.look() as look:  # says at once what is wrong with the database
        rights = look.rights()
    listening = listen("EMBEDWORKER_WEB", settings.web_host, settings.web_port, BACKLOG)
    host, port = listening.getsockname()[:2]
    watch = Watch(store)
    server = uvicorn.Server(
        uvicorn.Config(
            application(settings, access, store, watch, port=port),
            ws="none",
            log_config=None,
            access_log=False,  # it would show the token of the address
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=GRACE,
        )
    )

    def end(number: int, _: FrameType | None) -> None:
        log.info("%s: ending in order", signal.Signals(number).name)
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    watch.start()
    place = f"http://{f'[{host}]' if ':' in host else host}:{port}{settings.web_path.rstrip('/')}/"
    log.info("listening on %s, as %s in %s", place, rights.login, rights.database)
    if not is_loopback(settings.web_host):
        log.warning("others can reach this page, and HTTP hides nothing: put TLS in front of it")
    print(place if access.made is None else f"{place}?token={access.made}", flush=True)
    try:
        server.run(sockets=[listening])
    finally:
        watch.stop()
        store.close()
