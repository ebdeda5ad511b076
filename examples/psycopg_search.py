"""Search by meaning with psycopg alone.

DATABASE_URL=postgresql://… python examples/psycopg_search.py "the washing machine does not drain"
"""

import os
import sys
import time

import psycopg

MANUALS = [
    (1, "Washing machine", "F-05 means that water does not run off: straighten the drain hose."),
    (2, "Fridge", "If it hums, leave a hand's breadth between its back and the wall."),
    (3, "Coffee machine", "Run the descaling program when the red light blinks."),
]


def set_up(connection: psycopg.Connection) -> None:
    """Make the table and fill it; safe to repeat."""
    connection.execute(
        "create table if not exists appliance"
        " (id integer primary key, title text not null, content text not null)"
    )
    # From here on every insert, update and delete is reflected in appliance_embedding.
    connection.execute("select embed.enable('appliance', array['title', 'content'])")
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into appliance values (%s, %s, %s) on conflict (id) do nothing", MANUALS
        )


def wait_until_embedded(connection: psycopg.Connection, seconds: float = 60) -> None:
    """For a script that searches at once; an application need not wait."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        missing = connection.execute(
            "select rows - embedded from embed.status where source = 'appliance'::regclass"
        ).fetchone()
        if missing == (0,):
            return
        time.sleep(0.1)
    sys.exit("nothing was embedded; is `embedworker run` running?")


def main() -> None:
    question = " ".join(sys.argv[1:]) or "there is water left in the drum"
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        set_up(connection)
        wait_until_embedded(connection)
        hits = connection.execute(
            """
            select (hit."row").title, hit.score, hit.passage
            from embed.search(null::appliance, %s::text, k => 2) as hit
            """,
            [question],
        )
        for title, score, passage in hits:
            print(f"{score:.2f}  {title}: {passage.replace(chr(10), ' ')}")


if __name__ == "__main__":
    main()
