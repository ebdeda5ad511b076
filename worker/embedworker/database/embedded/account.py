"""The user a server of ours runs as: PostgreSQL refuses to run as root."""

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedworker.errors import EmbeddedServerError

__all__ = ["Account"]

_CANDIDATES = ("postgres", "nobody")
_COMMAND_TIMEOUT = 180.0  # seconds; crash recovery of a large database is the slowest case
_KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "PATH", "TZ")


@dataclass(frozen=True)
class Account:
    """A user and group; commands run as it with little environment and no other groups."""

    uid: int
    gid: int

    @classmethod
    def unprivileged(cls) -> "Account":
        """Return the caller, or for root the first of ``postgres`` and ``nobody`` that exists."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        for name in _CANDIDATES:
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            if entry.pw_uid != 0:
                return cls(entry.pw_uid, entry.pw_gid)
        raise EmbeddedServerError(
            "PostgreSQL does not run as root and there is no user postgres or nobody to run it as; "
            "create one, run embedworker as another user, or name a database in DATABASE_URL"
        )

    @classmethod
    def owner(cls, folder: Path) -> "Account":
        """Return the owner of an existing data folder, which must be able to go on using it."""
        found = folder.stat()
        account = cls(found.st_uid, found.st_gid)
        if account.uid == 0 or os.geteuid() not in (0, account.uid):
            raise EmbeddedServerError(
                f"the data folder {folder} belongs to user id {account.uid}; expected "
                f"{'a user that is not root' if account.uid == 0 else os.geteuid()}. "
                "Run embedworker as its owner or choose another folder in EMBEDWORKER_DATA_DIR"
            )
        return account

    @property
    def is_caller(self) -> bool:
        return self.uid == os.geteuid()

    def own(self, path: Path) -> None:
        """Make ``path`` this account's."""
        if not self.is_caller:
            os.chown(path, self.uid, self.gid)

    def can_enter(self, folder: Path) -> bool:
        """Say whether this account may pass through ``folder`` and all that lead to it."""
        return self.run(["test", "-x", str(folder)], folder=Path("/")).returncode == 0

    def run(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        libraries: Path | None = None,
        timeout: float = _COMMAND_TIMEOUT,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` as this account in ``folder``, its home; output is captured.

        ``libraries`` is a folder the program's own shared libraries are in.

        Raises:
            EmbeddedServerError: the command could not be started or did not end in time.
        """
        environment = {k: os.environ[k] for k in _KEPT_ENVIRONMENT if k in os.environ}
        environment |= {"HOME": str(folder), "LC_ALL": "C"}
        if libraries is not None:
            environment["LD_LIBRARY_PATH"] = str(libraries)
        other = not self.is_caller
        try:
            return subprocess.run(
                list(command),
                cwd=folder,
                env=environment,
                user=self.uid if other else None,
                group=self.gid if other else None,
                extra_groups=[] if other else None,
                umask=0o077,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedServerError(
                f"{command[0]} did not end within {timeout:g} s; see whether the disk or the "
                "machine is overloaded and try again"
            ) from None
        except OSError as error:  # PermissionError where a container allows no other user
            raise EmbeddedServerError(
                f"cannot run {command[0]} as user id {self.uid}: {error}; run embedworker as an "
                "ordinary user or name a database in DATABASE_URL"
            ) from error
