"""Settings: where they come from, what is refused, what is never shown."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedworker.database.connect import dsn
from embedworker.errors import ConfigurationError
from embedworker.settings import Settings, load, misspelt, obfuscate, worker
from embedworker.settings.reference import describe


def test_defaults_are_the_named_constants() -> None:
    found = load()
    constants = {n[8:].lower(): v for n, v in vars(worker).items() if n.startswith("DEFAULT_")}
    assert constants["window"] == 1024
    assert {name: getattr(found, name) for name in constants} == constants
    assert found.database_url is None


def test_environment_sets_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDWORKER_WINDOW", "7")
    monkeypatch.setenv("EMBEDWORKER_LEASE", "9.5")
    monkeypatch.setenv("EMBEDWORKER_LOG_LEVEL", "DEBUG")
    assert (load().window, load().lease, load().log_level) == (7, 9.5, "debug")
    assert load(window=8).window == 8
    assert load(window=None).window == 7


def test_own_database_variable_wins_over_the_common_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://common/x")
    assert load().database_url == "postgresql://common/x"
    monkeypatch.setenv("EMBEDWORKER_DATABASE_URL", "postgresql://own/x")
    assert load().database_url == "postgresql://own/x"
    assert load(database_url="postgresql://flag/x").database_url == "postgresql://flag/x"


def test_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDWORKER_THREADS", "")
    monkeypatch.setenv("DATABASE_URL", "")
    assert load().threads is None
    assert load().database_url is None


def test_variables_that_are_nearly_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LAESE", "LOGLEVEL", "PORT", "PORT_8100_TCP", "SERVICE_HOST", "SERVICE_PORT"):
        monkeypatch.setenv(f"EMBEDWORKER_{name}", "1")
    monkeypatch.setenv("EMBEDWORKER_LEASE", "60")
    assert misspelt() == {
        "EMBEDWORKER_LAESE": "EMBEDWORKER_LEASE",
        "EMBEDWORKER_LOGLEVEL": "EMBEDWORKER_LOG_LEVEL",
    }


def test_folders_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert load(data_dir=Path("~/a")).data_dir == tmp_path / "a"
    assert load(cache_dir=Path("b")).cache_dir == tmp_path / "b"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("EMBEDWORKER_LEASE", "0", "greater than or equal to 1"),
        ("EMBEDWORKER_LEASE", "1e12", "less than or equal to 86400"),
        ("EMBEDWORKER_WINDOW", "many", "valid integer"),
        ("EMBEDWORKER_WINDOW", "3000000000", "less than or equal to 100000"),
        ("EMBEDWORKER_DTYPE", "int8", "'auto', 'float32' or 'bfloat16'"),
        ("EMBEDWORKER_DEVICE", "gpu", "auto|cpu"),
        ("EMBEDWORKER_POLL_MIN", "3", "greater than EMBEDWORKER_POLL_MAX (2 s)"),
        ("EMBEDWORKER_NICE", "20", "less than or equal to 19"),
        ("EMBEDWORKER_BATCH_TIMEOUT", "nan", "greater than 0"),
    ],
)
def test_wrong_values_are_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert variable in str(caught.value)
    assert said in str(caught.value)


def test_every_mistake_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDWORKER_LEASE", "x")
    monkeypatch.setenv("EMBEDWORKER_THREADS", "0")
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert len(str(caught.value).splitlines()) == 2


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown setting 'windows'; expected one of"):
        load(windows=3)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().__setattr__("window", 3)


def test_password_is_not_in_repr_or_str() -> None:
    found = load(
        database_url="postgresql://u:hunter2@h/d", listen_url="host=h user=u password=hunter2"
    )
    assert "hunter2" not in f"{found!r} {found!s}"
    assert "postgresql://u:***@h/d" in repr(found)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://u:p@[::1]:5/d", "postgresql://u:***@[::1]:5/d"),
        (
            "postgresql://u:p@a:1,b:2/d?sslmode=require",
            "postgresql://u:***@a:1,b:2/d?sslmode=require",
        ),
        ("postgresql:///d?host=/run/pg&password=p", "postgresql:///d?host=/run/pg&password=***"),
        ("host=h password='a \\' b' user=u", "host=h password=*** user=u"),
        ("sslpassword = p dbname=d", "sslpassword = *** dbname=d"),
        # A URL that is written wrongly is shown in the error that says so.
        ("postgres//u:p@h/d", "postgres//u:***@h/d"),
        ("postgresql:/u:p@h/d", "postgresql:***@h/d"),
        ("u:p@h:5432/d", "u:***@h:5432/d"),
    ],
)
def test_obfuscate_keeps_all_but_the_password(url: str, shown: str) -> None:
    assert obfuscate(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "host=h password=my hunter2 dbname=d",
        "host=h passwrd=hunter2",
        "passwrd = hunter2 host=h",
        "postgresql://u@h/d?passwrd=hunter2",
    ],
)
def test_what_cannot_be_read_shows_no_value(url: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        dsn(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "query",
    [
        "schema=public&pgbouncer=true&connection_limit=5",
        "schema=&pool_timeout=0&socket_timeout=3",
        "prepared_statement_cache_size=0&async_fallback=true",
        "pool=5&prepared_statements=false&encoding=unicode",
        "conn_max_age=600&conn_health_checks=true",
        "uselibpqcompat=true",
        "",
    ],
)
def test_parameters_of_other_tools_that_change_nothing_are_ignored(query: str) -> None:
    plain = dsn("postgresql://u:p%26@h:5/d?sslmode=require")
    assert dsn(f"postgresql://u:p%26@h:5/d?sslmode=require&{query}") == plain
    assert dsn(f"postgresql://u:p%26@h:5/d?{query}&sslmode=require") == plain
    assert dsn(f"postgresql://u:p%26@h:5/d?{query}") == dsn("postgresql://u:p%26@h:5/d")


@pytest.mark.parametrize(
    ("query", "advice"),
    [
        ("schema=shop", "its parameter 'schema' is none of PostgreSQL's; "
         "write options=-csearch_path%3Dshop, or leave it out"),
        ("sslaccept=strict", "'sslaccept' is none of PostgreSQL's; write sslmode=verify-full"),
        ("charset=utf8", "'charset' is none of PostgreSQL's; leave it out"),
    ],
)  # fmt: skip
def test_other_parameters_are_named_with_what_to_write(query: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(advice)):
        dsn(f"postgresql://u@h/d?sslmode=require&{query}")
    (written,) = re.findall(r"write (\S+?)(?:,| or|$)", advice) or ["sslmode=require"]
    assert dsn(f"postgresql://u@h/d?{written}")


def test_a_question_mark_in_a_password_is_not_taken_for_parameters() -> None:
    assert " password=pa?schema=x " in dsn("postgresql://u:pa?schema=x@h/d")


@pytest.mark.parametrize("name", ["metrics", "serve"])
def test_a_link_of_kubernetes_is_no_port(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is named embedworker-metrics brings these into every container."""
    place = f"EMBEDWORKER_{name.upper()}"
    for variable, value in {
        f"{place}_PORT": "tcp://10.0.0.1:9464",
        f"{place}_PORT_9464_TCP": "tcp://10.0.0.1:9464",
        f"{place}_PORT_9464_TCP_ADDR": "10.0.0.1",
        f"{place}_PORT_9464_TCP_PORT": "9464",
        f"{place}_PORT_9464_TCP_PROTO": "tcp",
        f"{place}_SERVICE_HOST": "10.0.0.1",
        f"{place}_SERVICE_PORT": "9464",
    }.items():
        monkeypatch.setenv(variable, value)
    assert (load().metrics_port, load().serve_port) == (None, 8100)
    assert misspelt() == {}


@given(st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=4, max_size=12))
def test_obfuscate_hides_passwords_that_are_not_escaped(password: str) -> None:
    secret = f"Zq{password}qZ"
    shown = obfuscate(f"postgresql://user:{secret}@host/name")
    assert "Zq" not in shown
    assert "qZ" not in shown


def test_every_setting_is_described() -> None:
    rows = describe()
    assert [row.name for row in rows] == list(Settings.model_fields)
    for row in rows:
        assert row.meaning, row
        assert re.fullmatch(r"EMBEDWORKER_[A-Z_]+", row.variable)
        number = isinstance(Settings.model_fields[row.name].default, int | float)
        assert not number or row.unit, f"{row.name} has a number without a unit"
