"""The server used when no database is named: one for each user, kept between runs."""

import hashlib
import os
import pwd
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from embedworker.database.connect import connect
from embedworker.database.embedded.account import Account
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.embedded.installation import require_package, unpack, unpacked
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.errors import EmbeddedServerError
from embedworker.settings import Settings

__all__ = ["Status", "data_folder", "database_url", "start", "status", "stop", "stop_unused", "url"]

_ROOT_DATA = Path("/var/lib/embedworker")

LEAVING = 3.0  # seconds in which the server ends sessions whose process has gone
LOOK = 0.05  # seconds between looks at whether they have


@dataclass(frozen=True)
class Status:
    """What is known about the embedded server without connecting to it."""

    folder: Path
    created: bool
    running: bool
    pid: int | None
    port: int | None
    version: str | None


def database_url(settings: Settings) -> str:
    """Return the URL of the database that was named, else of the embedded server, started."""
    return settings.database_url or start(settings)


def start(settings: Settings) -> str:
    """Start the server unless it runs and return its URL, with the password in it.

    Any number of processes may call this at once.

    Raises:
        MissingExtra: its package is not installed.
        EmbeddedServerError: it could not be unpacked, created or started.
    """
    require_package()
    folder = data_folder(settings)
    _prepare(folder)
    with _locked(folder):
        return _cluster(folder).start()


def stop(settings: Settings) -> bool:
    """Stop the server and say whether it ran."""
    folder = data_folder(settings)
    if not _exists(folder):
        return False
    with _locked(folder):
        cluster = _cluster(folder)
        ran = cluster.pid is not None
        cluster.stop()
        return ran


def stop_unused(settings: Settings) -> bool:
    """Stop the server unless another process is connected; return whether it does not run now."""
    folder = data_folder(settings)
    if not _exists(folder):
        return True
    with _locked(folder):
        cluster = _cluster(folder)
        if cluster.pid is not None and _used(cluster.url()):
            return False
        cluster.stop()
    return True


def _used(url: str) -> bool:
    deadline = time.monotonic() + LEAVING
    with connect(url, vectors=False) as connection:
        while fetch_one(connection.execute(statement("server_used")))[0]:
            if time.monotonic() > deadline:
                return True
            time.sleep(LOOK)
    return False


def url(settings: Settings, *, password: bool = True) -> str:
    """Return the server's URL, whether it runs or not.

    Raises:
        EmbeddedServerError: it was never started.
    """
    folder = data_folder(settings)
    if not _exists(folder):
        raise EmbeddedServerError(
            f"there is no embedded server in {folder} yet; run `embedworker db start`"
        )
    return Cluster(folder, unpacked(folder)).url(password=password)


def status(settings: Settings) -> Status:
    """Say whether the server exists and runs; starts and changes nothing."""
    folder = data_folder(settings)
    if not _exists(folder):
        return Status(folder, created=False, running=False, pid=None, port=None, version=None)
    cluster = Cluster(folder, unpacked(folder))
    version = (cluster.data / "PG_VERSION").read_text().strip()
    pid = cluster.pid
    return Status(folder, True, pid is not None, pid, cluster.port, version)


def data_folder(settings: Settings) -> Path:
    """Return the folder of the embedded server: the one set, or the user's own.

    Root's is below /var/lib, because the user the server then runs as cannot enter /root. A root
    with a HOME of its own has a folder of its own.
    """
    if settings.data_dir is not None:
        return settings.data_dir
    if os.geteuid() != 0:
        return platformdirs.user_data_path("embedworker", appauthor=False)
    home = os.path.realpath(Path.home())
    if home == os.path.realpath(pwd.getpwuid(0).pw_dir):
        return _ROOT_DATA / "root"
    return _ROOT_DATA / hashlib.sha256(home.encode()).hexdigest()[:12]


def _exists(folder: Path) -> bool:
    return (folder / "data" / "PG_VERSION").is_file()


def _cluster(folder: Path) -> Cluster:
    account = Account.owner(folder / "data") if _exists(folder) else Account.unprivileged()
    return Cluster(folder, unpack(folder, account))


def _prepare(folder: Path) -> None:
    account = Account.owner(folder / "data") if _exists(folder) else Account.unprivileged()
    try:
        if made := not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)  # two may start at once
            # Another user's server must pass through; what is secret inside is 0600 or 0700.
            folder.chmod(0o700 if account.is_caller else 0o711)
            if folder.parent == _ROOT_DATA:
                _ROOT_DATA.chmod(0o755)
    except OSError as error:
        raise EmbeddedServerError(
            f"the folder {folder} for the embedded server cannot be made: {error.strerror}; "
            "set EMBEDWORKER_DATA_DIR to one you may write, or name a database in DATABASE_URL"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EmbeddedServerError(
            f"the folder {folder} for the embedded server may not be written by you; set "
            "EMBEDWORKER_DATA_DIR to another one, or name a database in DATABASE_URL"
        )
    if not account.can_enter(folder):
        if made:
            folder.rmdir()
        raise EmbeddedServerError(
            f"PostgreSQL does not run as root, and user {pwd.getpwuid(account.uid).pw_name}, as "
            f"whom it would run, cannot enter {folder}; choose a folder in EMBEDWORKER_DATA_DIR "
            "whose parents all allow entering (mode +x for others), or leave it unset"
        )


def _locked(folder: Path) -> AbstractContextManager[object]:
    from filelock import FileLock  # here, because only the extra `embedded` brings it

    return FileLock(folder / "lock", mode=0o600)
