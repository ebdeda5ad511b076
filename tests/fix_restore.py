"""A database that is dumped and restored elsewhere."""

from pathlib import Path

import psycopg
from psycopg import sql

from embedworker.database.embedded.cluster import Cluster


def roles_of(cluster: Cluster) -> set[str]:
    with psycopg.connect(cluster.url()) as connection:
        return {name for (name,) in connection.execute("select rolname from pg_roles")}


def dump_and_restore(
    cluster: Cluster, name: str, folder: Path, into: Cluster, new: str, *options: str
) -> str:
    """Return the URL of ``new``; both programs run as whoever owns the servers."""
    folder.mkdir()
    cluster.account.own(folder)
    dump = folder / "dump"
    said = cluster.installation.run(
        cluster.account, "pg_dump", "-Fc", "-f", str(dump), cluster.url(name), folder=folder
    )
    assert said.returncode == 0, said.stderr
    with psycopg.connect(into.url(), autocommit=True) as connection:
        connection.execute(f"drop database if exists {new} with (force)")
        connection.execute(f"create database {new}")
        for role in roles_of(cluster) - roles_of(into):
            # Roles are no part of a dump; without them its grants fail, ours and the application's.
            connection.execute(sql.SQL("create role {}").format(sql.Identifier(role)))
    said = into.installation.run(
        into.account,
        "pg_restore",
        "--exit-on-error",
        *options,
        "-d",
        into.url(new),
        str(dump),
        folder=folder,
    )
    assert said.returncode == 0, said.stderr
    return into.url(new)
