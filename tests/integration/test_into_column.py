"""A vector that is written into the application's own rows, and the application's own triggers."""

import pytest
from fix_drain import Connection, Drain
from psycopg.errors import Diagnostic

PREFIX = "To have them leave out what a worker writes: "
TABLE = """
create table film (
    id integer primary key, title text, last_update timestamptz not null default 'epoch',
    embedding vector(384)
);
insert into film values (1, 'one'), (2, 'two');
create table fired (name text);
create function note() returns trigger language plpgsql as
$$ begin insert into shop.fired values (tg_name); return null; end $$;
create function touch() returns trigger language plpgsql as
$$ begin new.last_update = now(); return new; end $$;
create trigger touch before update on film for each row execute function touch();
create trigger "Each statement" after update on film for each statement execute function note();
create trigger changed after update on film for each row
    when (old.title is distinct from new.title or old.embedding is distinct from new.embedding)
    execute function note();
create constraint trigger checked after update on film deferrable initially deferred
    for each row execute function note();
create trigger of_column after update of embedding on film for each row execute function note();
create trigger of_others after update of title on film for each row execute function note();
create trigger inserted after insert on film for each row execute function note();
create trigger off after update on film for each row execute function note();
alter table film disable trigger off;
"""
WHO_FIRES = '"Each statement", changed, checked, of_column, touch'


@pytest.fixture
def film(app: Connection) -> Connection:
    app.execute(TABLE)
    return app


def notices(app: Connection, statement: str) -> list[tuple[str, str]]:
    """What is said of triggers, and the hint; a notice is gone after the handler."""
    heard: list[tuple[str, str]] = []

    def hear(notice: Diagnostic) -> None:
        heard.append((notice.message_primary or "", notice.message_hint or ""))

    app.add_notice_handler(hear)
    try:
        app.execute(statement.encode())
    finally:
        app.remove_notice_handler(hear)
    return [(said, hint) for said, hint in heard if "triggers of your own" in said]


def names(app: Connection) -> set[str]:
    return {name for (name,) in app.execute("select name from fired")}


ENABLE = "select embed.enable('film', array['title'], into_column => 'embedding')"


def test_enable_says_which_triggers_fire(film: Connection, drain: Drain) -> None:
    ((said, hint),) = notices(film, ENABLE)
    assert said.endswith(f"writes into shop.film.embedding fires triggers of your own: {WHO_FIRES}")
    assert drain() == []
    # No sooner said than done: with what the hint says they do not fire.
    assert names(film) == {"Each statement", "changed", "checked", "of_column"}
    assert film.execute("select bool_and(last_update > 'epoch') from film").fetchone() == (True,)
    assert hint.startswith(PREFIX)
    film.execute("truncate fired; select embed.disable('film', drop_vectors => true)")
    film.execute("alter table film disable trigger user; update film set last_update = 'epoch'")
    film.execute("alter table film enable trigger user; alter table film disable trigger off")
    film.execute("truncate fired")
    film.execute(hint.removeprefix(PREFIX).encode())
    assert notices(film, ENABLE) == []
    assert drain() == []
    film.execute("select embed.disable('film', drop_vectors => true)")
    assert names(film) == set()
    assert film.execute("select bool_and(last_update = 'epoch') from film").fetchone() == (True,)
    film.execute("update film set title = 'changed'")
    assert names(film) == {"Each statement", "changed", "checked", "of_others"}
    assert film.execute("select bool_and(last_update > 'epoch') from film").fetchone() == (True,)


def test_nothing_is_said_where_none_fires(film: Connection) -> None:
    assert notices(film, "select embed.enable('film', array['title'])") == []


def test_disable_leaves_the_setting_as_it_was(film: Connection) -> None:
    film.execute(ENABLE)
    with film.transaction():
        film.execute("select embed.disable('film', drop_vectors => true)")
        writing = film.execute("select current_setting('embed.writing', true)").fetchone()
    assert writing in ((None,), ("",))
