"""A database with logins of the roles that ``migrate`` makes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
import pytest
from fix_database import _new_database as new_database
from psycopg.conninfo import make_conninfo

from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate
from embedworker.model.catalog import TESTING_MODEL

PASSWORD = "made up for the test"


@contextmanager
def database_with_logins(
    server: Cluster, template: str, logins: Mapping[str, str | None]
) -> Iterator[str]:
    """URL of a migrated database; each login t_… is a member of the role given for it, if any."""
    with pytest.MonkeyPatch.context() as patch, new_database(server, template) as url:
        patch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        migrate(url, model=TESTING_MODEL)
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                for login, group in logins.items():
                    member = f"in role {group}" if group else ""
                    connection.execute(
                        f"create role t_{login} login password '{PASSWORD}' {member}".encode()
                    )
            yield url
        finally:  # roles belong to the whole cluster
            with psycopg.connect(url, autocommit=True) as connection:
                for login in logins:
                    connection.execute(
                        f"drop owned by t_{login} cascade; drop role t_{login}".encode()
                    )


def as_login(url: str, login: str) -> str:
    return make_conninfo(url, user=f"t_{login}", password=PASSWORD)
