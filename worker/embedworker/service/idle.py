"""How often idle threads look: the more databases a process serves, the less often at each.

NOTIFY comes first. What it may miss waits longer: rows of a transaction that commits seconds after
another that notified, and rows of a worker that was killed.
"""

__all__ = ["pause", "serve"]

LOOKS = 4.0  # a second, by all threads of one kind together

_databases = 1


def serve(databases: int) -> None:
    """Note how many databases this process serves."""
    global _databases
    _databases = databases


def pause(usual: float) -> float:
    """Return the seconds until the next look at a database where there is nothing to do."""
    return max(usual, _databases / LOOKS) if _databases > 1 else usual
