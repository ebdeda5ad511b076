"""What log lines look like, and what of an error never gets into one."""

import io
import json
import logging
import warnings
from collections.abc import Iterator

import psycopg
import pytest

from embedworker.errors import ModelError
from embedworker.service.logs import redacted, set_up_logs
from embedworker.settings import load

SECRET = "은밀한 글 hunter2"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Where lines go, as JSON; the loggers are as before afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("embedworker")
    before = root.handlers, root.level, ours.handlers, ours.level, ours.propagate
    stream = io.StringIO()
    set_up_logs(load(log_format="json"), stream)
    yield stream
    logging.captureWarnings(False)
    root.handlers, ours.handlers, ours.propagate = before[0], before[2], before[4]
    root.setLevel(before[1])
    ours.setLevel(before[3])


def test_one_json_object_a_line(logged: io.StringIO) -> None:
    log = logging.getLogger("embedworker.test")
    log.info("two\nlines of %s", "글", extra={"fields": {"texts": 3}})
    log.debug("below the level")
    logging.getLogger("a.library").warning("of a library")
    logging.getLogger("a.library").info("not of interest")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("of Python", UserWarning, stacklevel=1)
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert [line["logger"] for line in lines] == ["embedworker.test", "a.library", "py.warnings"]
    assert lines[0] | {"time": ""} == {
        "time": "",
        "level": "info",
        "logger": "embedworker.test",
        "message": "two\nlines of 글",
        "texts": 3,
    }


@pytest.mark.parametrize("form", ["json", "human"])
def test_a_traceback_does_not_quote(logged: io.StringIO, form: str) -> None:
    set_up_logs(load(log_format=form), logged)
    try:
        raise ValueError(f"cannot read {SECRET!r}")
    except ValueError:
        logging.getLogger("embedworker.test").critical("a fault", exc_info=True)
    said = logged.getvalue()
    assert "ValueError" in said
    assert "test_logs.py" in said
    assert "hunter2" not in said


def test_our_own_errors_are_said_and_those_of_libraries_are_not() -> None:
    assert redacted(ModelError("it is gone\nand more")) == "it is gone"
    assert redacted("a sentence") == "a sentence"
    assert redacted(RuntimeError(SECRET)) == "RuntimeError"
    assert redacted(psycopg.OperationalError("the connection is lost")) == "the connection is lost"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("select $a$hunter2$a$::integer", "InvalidTextRepresentation (SQLSTATE 22P02)"),
        ("do $$ begin raise exception 'hunter2'; end $$", "RaiseException (SQLSTATE P0001)"),
        (
            "create temporary table t (c text constraint short check (length(c) < 3));"
            " insert into t values ('hunter2')",
            "CheckViolation (SQLSTATE 23514, table t, constraint short)",
        ),
        ("select * from nowhere", 'relation "nowhere" does not exist'),
    ],
)
def test_what_the_server_quotes_is_not_said(
    connection: psycopg.Connection[tuple[object, ...]], statement: str, said: str
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(statement.encode())
    assert redacted(caught.value) == said
