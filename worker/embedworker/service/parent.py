"""What a child process of ``embedworker run`` knows of its parent."""

import os
import threading

__all__ = ["PARENT", "end_with_parent", "main_process"]

PARENT = "EMBEDWORKER_PARENT_PIPE"
"""The variable of a child, whose stdin is a pipe that ends with its parent."""


def main_process() -> int:
    """Return the process number of the ``embedworker run`` that this one belongs to."""
    return os.getppid() if os.environ.get(PARENT) == "1" else os.getpid()


def end_with_parent() -> bool:
    """In a child: end at once when the parent is gone, so that its rows are free for others.

    Returns whether this is one.
    """
    if os.environ.get(PARENT) != "1":
        return False

    def watch() -> None:
        # Not sys.stdin: its lock, held by a daemon thread, aborts the interpreter at its end.
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
    return True
