"""How the columns of a row become the text that is embedded."""

import psycopg
import pytest
from fix_drain import Connection, Drain, assert_current

ROWS = """
create table article (id integer primary key, title text, body text, "odd {name}" text);
insert into article values
    (1, 'Title', 'Body', 'x'), (2, null, 'Body', ''), (3, 'Title', null, null),
    (4, '', '  ', U&'\\3000'),
    (5, '100% {title} %s', 'a{b}c', '{{}}');
"""
BOTH = "array['title', 'body']"


@pytest.fixture
def article(app: Connection) -> Connection:
    app.execute(ROWS)
    return app


@pytest.mark.parametrize(
    ("columns", "pattern", "expected"),
    [
        (["body"], None, {"1": "Body", "2": "Body", "5": "a{b}c"}),
        (
            ["title", "body"],
            None,
            {"1": "Title\nBody", "2": "Body", "3": "Title", "5": "100% {title} %s\na{b}c"},
        ),
        (
            ["body", "title"],
            None,
            {"1": "Body\nTitle", "2": "Body", "3": "Title", "5": "a{b}c\n100% {title} %s"},
        ),
        (
            ["title", "body"],
            "{title}: {body}",
            {"1": "Title: Body", "2": ": Body", "3": "Title: ", "5": "100% {title} %s: a{b}c"},
        ),
        (
            ["title", "body"],
            "{{{title}}} 'it''s' 50% %s {body}{title}{{}}",
            {
                "1": "{Title} 'it''s' 50% %s BodyTitle{}",
                "2": "{} 'it''s' 50% %s Body{}",
                "3": "{Title} 'it''s' 50% %s Title{}",
                "5": "{100% {title} %s} 'it''s' 50% %s a{b}c100% {title} %s{}",
            },
        ),
        (
            ["title"],
            "{title}\\ $1 $$",
            {"1": "Title\\ $1 $$", "3": "Title\\ $1 $$", "5": "100% {title} %s\\ $1 $$"},
        ),
        (
            ["title"],
            "  {title}  ",
            {"1": "  Title  ", "3": "  Title  ", "5": "  100% {title} %s  "},
        ),
    ],
)
def test_text(
    article: Connection,
    drain: Drain,
    columns: list[str],
    pattern: str | None,
    expected: dict[str, str],
) -> None:
    article.execute("select embed.enable('article', %s, template => %s)", [columns, pattern])
    assert drain() == []
    assert assert_current(article, "article") == {(key,): text for key, text in expected.items()}


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{title} {nothing}", "template names {nothing}, which is not among the enabled columns"),
        ("{title} {body", "template has a single brace at '{body'"),
        ("{title}} {body}", "template has a single brace at '} {body}'"),
        ("{title} {}", "template names {}"),
        ("{title}", "template does not use the column body"),
        ("", "template does not use the column title"),
        ("{1} {2}", "template names {1}"),
        ("{Title} {body}", "template names {Title}"),
    ],
)
def test_errors(article: Connection, pattern: str, said: str) -> None:
    with pytest.raises(psycopg.DatabaseError) as error:
        article.execute(f"select embed.enable('article', {BOTH}, template => %s)", [pattern])
    assert error.value.sqlstate == "EW003"
    assert said in (error.value.diag.message_primary or "")
    assert error.value.diag.message_hint


def test_column_with_braces_in_its_name(article: Connection, drain: Drain) -> None:
    """It cannot be named in a template, but be embedded without one."""
    article.execute("select embed.enable('article', array['odd {name}'])")
    assert drain() == []
    assert assert_current(article, "article") == {("1",): "x", ("5",): "{{}}"}


def test_other_template(article: Connection, drain: Drain) -> None:
    article.execute(f"select embed.enable('article', {BOTH}, template => '{{title}} {{body}}')")
    assert drain() == []
    article.execute(f"select embed.enable('article', {BOTH}, template => '{{title}} - {{body}}')")
    assert drain() == []
    assert assert_current(article, "article")[("1",)] == "Title - Body"
