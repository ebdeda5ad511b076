"""What systemd is told: that the worker has started, that it still runs, and that it ends.

The protocol is that of sd_notify(3): a line in a datagram to the socket that ``NOTIFY_SOCKET``
names. Without that variable, outside of systemd, nothing is sent.
"""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["reported_to_systemd", "tell_systemd"]

log = logging.getLogger("embedworker.systemd")


@contextmanager
def reported_to_systemd() -> Iterator[None]:
    """Tell systemd that the worker runs, and repeat it as often as the unit's WatchdogSec asks for.

    The thread that repeats it needs nothing but a process that can run Python. A server or a model
    that is away does not stop it, because a restart brings neither of them back.
    """
    tell_systemd("READY=1")
    ended = threading.Event()
    watchdog = threading.Thread(target=_repeat, args=(ended,), name="watchdog", daemon=True)
    watchdog.start()
    try:
        yield
    finally:
        ended.set()
        watchdog.join()


def tell_systemd(line: str) -> None:
    """Send one line, such as ``STOPPING=1``.

    A socket that cannot be reached is logged and ends no worker: it may be that of a parent which
    left its environment behind.
    """
    name = os.environ.get("NOTIFY_SOCKET")
    if not name:
        return
    # A name that begins with @ is in the abstract name space, whose names begin with a zero byte.
    address = "\0" + name[1:] if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as there:
            there.sendto(line.encode(), address)
    except OSError as error:
        log.warning("systemd was not told %s by NOTIFY_SOCKET=%s: %s", line, name, error)


def _repeat(ended: threading.Event) -> None:
    limit = os.environ.get("WATCHDOG_USEC")
    # The variables of a parent that did not take them away are not meant for this process.
    if not limit or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while not ended.wait(int(limit) / 2_000_000):
        tell_systemd("WATCHDOG=1")
