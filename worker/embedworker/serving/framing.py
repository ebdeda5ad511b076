"""Refuse a request whose end cannot be known, before the application sees it."""

from starlette.types import ASGIApp, Receive, Scope, Send

from embedworker.serving.refusal import Refusal

__all__ = ["Framed"]


class Framed:
    """Refuses requests whose end may be read in two ways (RFC 9112, 6.1 and 6.3), and hangs up.

    A proxy before this server that goes by the other length would take the rest of the body for a
    request of its next client, or the next request for a body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        names = [name.lower() for name, _ in scope["headers"]]
        chunked = b"transfer-encoding" in names
        if chunked and (b"content-length" in names or scope["http_version"] != "1.1"):
            refusal = Refusal(
                400,
                "send either Content-Length or, in HTTP/1.1, Transfer-Encoding",
                headers={"Connection": "close"},
            )
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)
