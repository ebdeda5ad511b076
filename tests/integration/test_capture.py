"""What the application does to a plain table, and what becomes of its vectors.

Every test changes an enabled table whose vectors are current, says how many changes were captured,
and compares the vectors with the texts after the worker has run.
"""

import sys
import unicodedata

import psycopg
import pytest
from fix_drain import Connection, Drain, assert_current, captured, drain_url, make_dead

from embedworker.normalization import normalized

TABLE = """
create table article (id integer primary key, title text, body text, views integer default 0);
insert into article (id, title, body)
values (1, 'one', 'first'), (2, 'two', 'second'), (3, 'three', 'third');
select embed.enable('article', array['body']);
"""


@pytest.fixture
def article(app: Connection, drain: Drain) -> Connection:
    """A table with three embedded rows."""
    app.execute(TABLE)
    assert drain() == []
    assert len(assert_current(app, "article")) == 3
    return app


def bodies(connection: Connection) -> dict[tuple[str, ...], str]:
    """The current texts of ``article`` by key, after all is checked."""
    return assert_current(connection, "article")


THREE = {("1",): "first", ("2",): "second", ("3",): "third"}

CHANGES = {
    "insert": (
        "insert into article values (4, 'four', 'fourth')",
        ["4"],
        THREE | {("4",): "fourth"},
    ),
    "insert of several rows": (
        "insert into article select n, 'x', 'text ' || n from generate_series(4, 6) n",
        ["4", "5", "6"],
        THREE | {(str(n),): f"text {n}" for n in (4, 5, 6)},
    ),
    "insert of no row": ("insert into article select 9, 'x', 'y' where false", [], THREE),
    "insert without text": (
        "insert into article values (4, 'four', null), (5, 'five', '')",
        [],
        THREE,
    ),
    "insert of blanks": (
        "insert into article values (4, 'four', '  '), (5, 'five', U&'\\3000\\200B')",
        ["4", "5"],
        THREE,
    ),
    "upsert of a new row": (
        "insert into article values (4, 'four', 'fourth')"
        " on conflict (id) do update set body = excluded.body",
        ["4"],
        THREE | {("4",): "fourth"},
    ),
    "upsert of a row that is there": (
        "insert into article values (1, 'one', 'changed'), (4, 'four', 'fourth')"
        " on conflict (id) do update set body = excluded.body",
        ["1", "4"],
        THREE | {("1",): "changed", ("4",): "fourth"},
    ),
    "upsert with the same text": (
        "insert into article values (1, 'one', 'first')"
        " on conflict (id) do update set body = excluded.body",
        [],
        THREE,
    ),
    "insert that does nothing on conflict": (
        "insert into article values (1, 'one', 'changed') on conflict do nothing",
        [],
        THREE,
    ),
    "merge": (
        "merge into article a"
        " using (values (1, 'merged'), (2, null), (4, 'fourth')) as s (id, body) on a.id = s.id"
        " when matched and s.body is null then delete"
        " when matched then update set body = s.body"
        " when not matched then insert (id, body) values (s.id, s.body)",
        ["1", "2", "4"],
        {("1",): "merged", ("3",): "third", ("4",): "fourth"},
    ),
    "update of the text": (
        "update article set body = 'changed' where id = 2",
        ["2"],
        THREE | {("2",): "changed"},
    ),
    "update of every text": (
        "update article set body = body || '!'",
        ["1", "2", "3"],
        {key: text + "!" for key, text in THREE.items()},
    ),
    "update of some texts in one statement": (
        "update article set body = case id when 2 then 'changed' else body end",
        ["2"],
        THREE | {("2",): "changed"},
    ),
    "update of another column": ("update article set title = 'x', views = views + 1", [], THREE),
    "update to the same text": ("update article set body = body, views = 7", [], THREE),
    "update of no row": ("update article set body = 'x' where id = 99", [], THREE),
    "update that differs in case only": (
        "update article set body = 'First' where id = 1",
        ["1"],
        THREE | {("1",): "First"},
    ),
    "update that differs in a trailing blank only": (
        "update article set body = 'first ' where id = 1",
        ["1"],
        THREE | {("1",): "first "},
    ),
    "update to null": (
        "update article set body = null where id = 1",
        ["1"],
        {("2",): "second", ("3",): "third"},
    ),
    "update to the empty text": (
        "update article set body = '' where id = 1",
        ["1"],
        {("2",): "second", ("3",): "third"},
    ),
    "update to blanks": (
        "update article set body = E' \\t\\n' where id = 1",
        ["1"],
        {("2",): "second", ("3",): "third"},
    ),
    "update of the key": (
        "update article set id = 10 where id = 1",
        ["1", "10"],
        {("2",): "second", ("3",): "third", ("10",): "first"},
    ),
    "update of key and text": (
        "update article set id = 10, body = 'changed' where id = 1",
        ["1", "10"],
        {("2",): "second", ("3",): "third", ("10",): "changed"},
    ),
    "update that swaps two keys": (
        "update article set id = case id when 1 then -2 else -1 end where id < 3;"
        "update article set id = -id where id < 0",
        ["-1", "-1", "-2", "-2", "1", "1", "2", "2"],
        {("1",): "second", ("2",): "first", ("3",): "third"},
    ),
    "update that shifts all keys": (
        "update article set id = id + 10",
        ["1", "11", "12", "13", "2", "3"],
        {("11",): "first", ("12",): "second", ("13",): "third"},
    ),
    "delete": ("delete from article where id = 1", ["1"], {("2",): "second", ("3",): "third"}),
    "delete of every row": ("delete from article", ["1", "2", "3"], {}),
    "delete and insert of the same key": (
        "begin; delete from article where id = 1; insert into article values (1, 'x', 'again');"
        "commit",
        ["1", "1"],
        THREE | {("1",): "again"},
    ),
    "writable common table expressions": (
        "with gone as (delete from article where id = 1 returning *),"
        " changed as (update article set body = 'changed' where id = 2)"
        " insert into article select id + 100, title, body from gone",
        ["1", "101", "2"],
        {("2",): "changed", ("3",): "third", ("101",): "first"},
    ),
    "rollback": ("begin; update article set body = 'x'; delete from article; rollback", [], THREE),
    "rollback to a savepoint": (
        "begin; update article set body = 'kept' where id = 1; savepoint s;"
        " update article set body = 'lost' where id = 2; rollback to s; commit",
        ["1"],
        THREE | {("1",): "kept"},
    ),
}


@pytest.mark.parametrize(
    ("change", "keys", "expected"),
    CHANGES.values(),
    ids=[name.replace(" ", "-") for name in CHANGES],
)
def test_change(
    article: Connection,
    drain: Drain,
    change: str,
    keys: list[str],
    expected: dict[tuple[str, ...], str],
) -> None:
    article.execute(change)
    assert [key for (key,) in captured(article, "article")] == sorted(keys)
    assert drain() == []
    assert bodies(article) == expected


def test_copy(article: Connection, drain: Drain) -> None:
    with article.cursor().copy("copy article (id, body) from stdin") as copy:
        for n in range(10, 110):
            copy.write_row((n, f"text {n}"))
    assert len(captured(article, "article")) == 100
    assert drain() == []
    assert bodies(article) == THREE | {(str(n),): f"text {n}" for n in range(10, 110)}


@pytest.mark.parametrize("statement", ["truncate article", "truncate article restart identity"])
def test_truncate(article: Connection, drain: Drain, statement: str) -> None:
    article.execute("update article set body = 'waits in the queue'")
    article.execute(statement)
    article.execute("insert into article values (2, 'two', 'after')")
    assert drain() == []
    assert bodies(article) == {("2",): "after"}


def test_truncate_clears_dead_letters(article: Connection, drain: Drain) -> None:
    article.execute("update article set body = 'x <<fail>>' where id = 1")
    assert drain() == []
    make_dead(article, "article")
    article.execute("truncate article")
    assert drain() == []
    assert bodies(article) == {}


def test_truncate_cascade(article: Connection, drain: Drain) -> None:
    article.execute("create table author (id integer primary key)")
    article.execute("alter table article add author integer references author")
    article.execute("truncate author cascade")
    assert drain() == []
    assert bodies(article) == {}


def test_rolled_back_truncate(article: Connection, drain: Drain) -> None:
    article.execute("begin; truncate article; rollback")
    assert article.execute("select count(*) from embed.sweep_request").fetchone() == (0,)
    assert drain() == []
    assert bodies(article) == THREE


def test_cascaded_delete_and_update(article: Connection, drain: Drain) -> None:
    article.execute(
        """
        create table author (id integer primary key);
        insert into author values (1), (2);
        alter table article add constraint article_author foreign key (id) references author
            on delete cascade on update cascade not valid;
        delete from author where id = 1;
        update author set id = 20 where id = 2;
        """
    )
    assert captured(article, "article") == [("1",), ("2",), ("20",)]
    assert drain() == []
    assert bodies(article) == {("3",): "third", ("20",): "second"}


def test_trigger_of_the_application_that_changes_the_text(
    article: Connection, drain: Drain
) -> None:
    article.execute(
        """
        create function shout() returns trigger language plpgsql
        as 'begin new.body := upper(new.body); return new; end';
        create trigger shout before insert or update on article
            for each row execute function shout();
        insert into article values (4, 'four', 'fourth');
        update article set body = 'changed' where id = 1;
        """
    )
    assert drain() == []
    assert bodies(article) == THREE | {("4",): "FOURTH", ("1",): "CHANGED"}


def test_trigger_of_the_application_that_writes_again(article: Connection, drain: Drain) -> None:
    article.execute(
        """
        create function again() returns trigger language plpgsql as $$
        begin
            if new.body not like '%again' then
                update article set body = new.body || ' again' where id = new.id;
                insert into article values (new.id + 100, 'copy', new.body || ' again')
                    on conflict do nothing;
            end if;
            return null;
        end $$;
        create trigger again after insert or update on article
            for each row execute function again();
        update article set body = 'changed' where id = 1;
        """
    )
    assert drain() == []
    assert bodies(article) == THREE | {("1",): "changed again", ("101",): "changed again"}


def test_deferred_and_nested_transactions_of_a_function(article: Connection, drain: Drain) -> None:
    article.execute(
        """
        do $$
        begin
            update article set body = 'kept' where id = 1;
            commit;
            begin
                update article set body = 'lost' where id = 2;
                raise exception 'no';
            exception when others then null;
            end;
            update article set body = 'kept too' where id = 3;
            rollback;
        end $$
        """
    )
    assert captured(article, "article") == [("1",)]
    assert drain() == []
    assert bodies(article) == THREE | {("1",): "kept"}


BLANKS = [0x20, 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85, 0xA0, 0xAD, 0x115F, 0x1160, 0x1680, 0x180E]
BLANKS += [*range(0x2000, 0x2010), 0x2028, 0x2029, 0x202F, 0x205F, *range(0x2060, 0x2065), 0x2800]
BLANKS += [0x3000, 0x3164, 0xFEFF, 0xFFA0]


def test_every_blank_is_nothing_to_read(app: Connection) -> None:
    for code in BLANKS:
        assert app.execute("select embed.nonblank(%s)", [chr(code) * 2]).fetchone() == (None,)
        text = f"{chr(code)}a{chr(code)}"
        assert app.execute("select embed.nonblank(%s)", [text]).fetchone() == (text,)


@pytest.mark.parametrize("blank", ["", " ", "\u3000\u3000", "\u200b\ufeff", "\u3164", "\r\n\t\xa0"])
def test_text_that_becomes_blank_and_comes_back(
    article: Connection, drain: Drain, blank: str
) -> None:
    article.execute("update article set body = %s where id = 1", [blank])
    assert drain() == []
    assert ("1",) not in bodies(article)
    article.execute("update article set body = 'back' where id = 1")
    assert drain() == []
    assert bodies(article)[("1",)] == "back"


def test_decomposed_korean_is_composed(article: Connection, drain: Drain) -> None:
    decomposed = unicodedata.normalize("NFD", "한국어 검색")
    article.execute("update article set body = %s where id = 1", [decomposed])
    assert drain() == []
    assert bodies(article)[("1",)] == "한국어 검색"


ORDINARY = (
    "여권을 잃어버렸어요. 김치는 김치냉장고에 넣어 차갑게 보관합니다.",
    "Tôi muốn học tiếng Việt để đọc sách của các nhà văn nổi tiếng.",
    "بِسْمِ ٱللَّهِ ٱلرَّحْمَٰنِ ٱلرَّحِيمِ",
    "בְּרֵאשִׁ֖ית בָּרָ֣א אֱלֹהִ֑ים אֵ֥ת הַשָּׁמַ֖יִם וְאֵ֥ת הָאָֽרֶץ",
    "ที่นี่มีน้ำผึ้งอยู่ทุกหมู่บ้าน",
    "हिन्दी में लिखा हुआ ज़रूरी वाक्य",
    "བོད་སྐད་ཀྱི་ཡི་གེ",
    "x" + "\u0323\u0301" * 15,  # as many marks as the standard allows
)


def test_a_run_of_marks_holds_up_nothing(article: Connection, drain: Drain) -> None:
    """PostgreSQL's normalize() takes a minute for these, and a statement_timeout cannot end it."""
    article.execute("update article set body = 'x' || repeat(U&'\\0301\\0323', 50000) where id = 1")
    assert drain() == []
    # Sorted and composed within a run; the two in front are of the first 30.
    first, others = "\u0323" * 14 + "\u0301" * 15, "\u0323" * 15 + "\u0301" * 15
    rest = 100_000 - 30 * 3333
    assert bodies(article)[("1",)] == "\u034f".join(
        ["x\u0323" + first, *[others] * 3332, "\u0323" * (rest // 2) + "\u0301" * (rest // 2)]
    )


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_ordinary_text_is_composed_and_nothing_else(app: Connection, form: str) -> None:
    for text in ORDINARY:
        given = unicodedata.normalize(form, text)  # type: ignore[arg-type]  # one of the two
        assert app.execute("select embed._nfc(%s)", [given]).fetchone() == (
            unicodedata.normalize("NFC", text),
        )
        assert normalized("NFC", given) == unicodedata.normalize("NFC", text)


def test_sql_and_python_break_the_same_runs(app: Connection) -> None:
    """Each character 31 times in a row: the two must agree on which are combining ones."""
    assigned = [
        chr(code)
        for code in range(0x20, sys.maxunicode + 1)
        if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")
        and not unicodedata.name(chr(code), "").startswith(("CJK", "HANGUL SYL", "TANGUT"))
    ]
    combining = [c for c in assigned if unicodedata.combining(unicodedata.normalize("NFKD", c)[0])]
    assert len(combining) > 900
    broken = 0
    for at in range(0, len(assigned), 1000):
        # The first two are in the wrong order: what is NFC already is left as it is.
        text = "x\u0301\u0323" + "".join(f"x{c * 31}" for c in assigned[at : at + 1000])
        made = app.execute("select embed._nfc(%s)", [text]).fetchone()
        assert made == (normalized("NFC", text),), assigned[at]
        broken += made[0].count("\u034f") - text.count("\u034f")
        again = app.execute("select embed._nfc(%s)", made).fetchone()
        assert again == made
    assert broken == len(combining)


def test_a_run_of_marks_where_a_backslash_escapes(app: Connection) -> None:
    """Plain strings of applications of long ago; so are those in functions that they call."""
    app.execute("set standard_conforming_strings = off; set escape_string_warning = off")
    query = "select length(embed._nfc('x' || repeat(chr(769) || chr(803), 30)))"
    assert app.execute(query).fetchone() == (62,)


def test_application_role_needs_no_rights_of_ours(article: Connection, drain: Drain) -> None:
    article.execute(
        """
        drop role if exists shopkeeper;
        create role shopkeeper;
        grant usage on schema shop to shopkeeper;
        grant select, insert, update, delete, truncate on article to shopkeeper;
        set role shopkeeper;
        insert into article values (4, 'four', 'fourth');
        update article set body = 'changed' where id = 1;
        delete from article where id = 2;
        reset role;
        """
    )
    assert drain() == []
    assert bodies(article) == {("1",): "changed", ("3",): "third", ("4",): "fourth"}
    article.execute("set role shopkeeper; truncate article; reset role")
    assert drain() == []
    assert bodies(article) == {}


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_no_level_of_isolation_makes_writers_conflict(
    article: Connection, drain: Drain, level: str
) -> None:
    """Two writers of different rows, and a worker that empties the inbox between them."""
    with psycopg.connect(article.info.dsn + f" password={article.info.password}") as other:
        other.execute(f"set transaction isolation level {level}")
        other.execute("update shop.article set body = 'by the other' where id = 1")
        article.execute("update article set body = 'changed' where id = 2")
        assert drain() == []
        other.execute("update shop.article set body = 'again by the other' where id = 1")
        other.execute("delete from shop.article where id = 3")
        other.commit()
    assert drain() == []
    assert bodies(article) == {("1",): "again by the other", ("2",): "changed"}


@pytest.mark.parametrize(
    ("value", "notified"),
    [("auto", True), ("on", True), ("off", False), ("false", False), ("", True), ("what", True)],
)
def test_setting_notify(article: Connection, value: str, notified: bool) -> None:
    article.execute("listen embed")
    article.execute("select set_config('embed.notify', %s, false)", [value])
    article.execute("update article set body = 'changed' where id = 1")
    assert bool(list(article.notifies(timeout=0))) is notified


def test_prepared_transaction(two_phase: str) -> None:
    """NOTIFY would make PREPARE TRANSACTION fail; there, the poll finds the rows."""
    with psycopg.connect(two_phase, autocommit=True) as connection:
        connection.execute("create schema shop; set search_path = shop, public")
        connection.execute(TABLE)
        assert drain_url(two_phase) == []
        connection.execute(
            "begin; update article set body = 'changed' where id = 1; delete from article"
            " where id = 2; prepare transaction 'one'"
        )
        connection.execute(
            "begin; update article set body = 'lost' where id = 3; prepare transaction 'two'"
        )
        assert drain_url(two_phase) == []
        assert bodies(connection) == THREE
        connection.execute("commit prepared 'one'")
        connection.execute("rollback prepared 'two'")
        assert drain_url(two_phase) == []
        assert bodies(connection) == {("1",): "changed", ("3",): "third"}
        connection.execute("set embed.notify = on")
        connection.execute("begin; update article set body = 'x' where id = 1")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
            connection.execute("prepare transaction 'three'")


def test_columns_of_different_collations(app: Connection, drain: Drain) -> None:
    """Of two put together, none can be derived to compare them under."""
    app.execute(
        """
        create table mixed
            (id int primary key, name text collate "C", body text collate "POSIX", kind char(5));
        insert into mixed values (1, 'one', 'first', 'a');
        select embed.enable('mixed', array['name', 'body', 'kind']);
        """
    )
    assert drain() == []
    app.execute("insert into mixed values (2, 'two', 'second', 'b')")
    assert captured(app, "mixed") == [("2",)]
    app.execute("update mixed set body = 'erster' where id = 1")
    assert drain() == []
    assert assert_current(app, "mixed") == {("1",): "one\nerster\na", ("2",): "two\nsecond\nb"}
