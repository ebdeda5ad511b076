"""The wait for a client's body, and for its vectors only while the client is there."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from embedworker.model.encoder import Vectors
from embedworker.serving.engine import EncodingJob
from embedworker.serving.refusal import Refusal

__all__ = ["read_body", "wait_for"]

BODY_TIMEOUT = 30.0  # seconds a client may take to send its body
DRAINED = 8  # times the longest body that are read at most
DISCONNECT_LOOK = 0.5  # seconds between looks at whether the client still waits

_GONE = Refusal(499, "the client has gone")


async def read_body(request: Request, most: int) -> bytes:
    """Return the body of a request, of ``most`` bytes at most."""
    body = bytearray()
    length = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                length += len(chunk)
                # What is too long is read on and forgotten: a client that still sends when it
                # is answered sees a broken connection, and not why.
                if length <= most:
                    body += chunk
                elif length > DRAINED * most:
                    break
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {BODY_TIMEOUT:g} s") from None
    except ClientDisconnect:
        raise _GONE from None
    if length > most:
        raise Refusal(413, f"the body is longer than {most} bytes; send fewer texts")
    return bytes(body)


async def wait_for(request: Request, job: EncodingJob) -> Vectors:
    """Wait for the vectors as long as the client does."""
    waiting = asyncio.wrap_future(job.future)
    while not waiting.done():
        await asyncio.wait([waiting], timeout=DISCONNECT_LOOK)
        if not waiting.done() and await request.is_disconnected():
            waiting.cancel()
            raise _GONE
    return waiting.result()
