"""A program that runs for minutes: its server, and its command line."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedworker.database.embedded.account import Account
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.embedded.installation import unpack


@contextmanager
def new_server(folder: Path, **options: str) -> Iterator[Cluster]:
    """A durable server, as a real one is, unless ``options`` say otherwise. It may be restarted."""
    folder.chmod(0o711)
    place = folder / "cluster"
    place.mkdir()
    place.chmod(0o711)
    cluster = Cluster(place, unpack(folder, Account.unprivileged()), options=options)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop("immediate")


def main(
    run: Callable[..., Any], example: str, flags: dict[str, tuple[float, str]], **options: str
) -> int:
    """Run on a server of its own, with a default and a meaning for each flag; 0 when it is good."""
    prog = f"python -m tests.{Path(sys.argv[0]).parent.name}"
    parser = argparse.ArgumentParser(prog=prog, description=example)
    for name, (default, meaning) in flags.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=meaning)
    chosen = vars(parser.parse_args())
    with (
        tempfile.TemporaryDirectory(prefix="embedworker-long-run-") as folder,
        new_server(Path(folder), **options) as server,
    ):
        outcome = run(server, Path(folder), **chosen)
    print(outcome)
    return 0 if outcome.good else 1
