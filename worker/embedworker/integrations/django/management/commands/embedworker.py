"""``manage.py embedworker …``: the command line on Django's database."""

import os
import sys
from typing import Any

from django.core.management.base import BaseCommand
from django.db import DEFAULT_DB_ALIAS, connections
from psycopg.conninfo import make_conninfo

__all__ = ["Command"]

_KEPT = ("host", "port", "dbname", "user", "password", "service", "passfile")


class Command(BaseCommand):
    """``manage.py embedworker run`` is ``embedworker run`` on the database ``default``."""

    help = "Run a command of embedworker on the database of this project."

    def run_from_argv(self, argv: list[str]) -> None:
        """Give all arguments to embedworker, --help too."""
        self.handle(*argv[2:])

    def handle(self, *args: str, **_: Any) -> None:
        """Run one command; exits as ``embedworker`` does where it fails."""
        # By its full name: this module is named embedworker, too.
        from embedworker.cli.app import main

        given = connections[DEFAULT_DB_ALIAS].get_connection_params()
        address = {name: given[name] for name in given if name in _KEPT or name.startswith("ssl")}
        os.environ["EMBEDWORKER_DATABASE_URL"] = make_conninfo(**address)
        sys.argv = ["manage.py embedworker", *args]
        main()
