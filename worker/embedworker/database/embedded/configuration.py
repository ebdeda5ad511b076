"""The postgresql.conf of an embedded server: what fits the machine, and what always holds."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from embedworker.machine import cpu_quota, memory

__all__ = ["CONF", "HOST", "defaults", "text"]

CONF = "embedworker.conf"
HOST = "127.0.0.1"

_OPTIONS = {
    "fsync": "on",
    # No socket: the path of one may be longer than the 107 bytes a socket address holds.
    "unix_socket_directories": "",
    "listen_addresses": HOST,
    "log_line_prefix": "%m [%p] %q%u@%d ",
}
# Parallel index builds share memory through /dev/shm, which containers often limit to 64 MB.
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - measured, never written to
_SHARED_MEMORY_NEEDED = 3 << 30  # bytes; MOST_INDEX_MEMORY and the rest
_MB = 1 << 20  # bytes


def defaults() -> dict[str, str]:
    """Return the options of a server on this machine."""
    return {**_fitting(memory(), cpu_quota()), **_OPTIONS}


def text(options: Mapping[str, str], port: int) -> str:
    """Return the file for these options and this port."""
    return "".join(f"{k} = {_quote(v)}\n" for k, v in _settings(options, port))


def _settings(options: Mapping[str, str], port: int) -> Iterator[tuple[str, str]]:
    yield from options.items()
    yield "port", str(port)
    if _SHARED_MEMORY.is_dir() and (
        shutil.disk_usage(_SHARED_MEMORY).total < _SHARED_MEMORY_NEEDED
    ):
        yield "dynamic_shared_memory_type", "sysv"


def _fitting(available: int, processors: int) -> dict[str, str]:
    """Return what depends on the machine, which the server shares with a worker and its models."""

    def share(of: int, least: int, most: int) -> str:
        return f"{min(max(available // of // _MB, least), most)}MB"

    return {
        "shared_buffers": share(8, 128, 2048),
        "effective_cache_size": share(2, 256, 1 << 20),
        "maintenance_work_mem": share(16, 64, 512),
        "autovacuum_work_mem": share(64, 16, 64),
        # The process that builds an index works, too.
        "max_parallel_maintenance_workers": str(min(processors - 1, 7)),
        "max_worker_processes": str(max(8, processors)),
        "max_parallel_workers": str(max(8, processors)),
    }


def _quote(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
