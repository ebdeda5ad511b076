"""The embedded server: created, kept, stopped, crashed, started twice at once, as root and not."""

import multiprocessing
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psycopg
import pytest
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.embedded import server
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.embedded.installation import Installation
from embedworker.database.migrate import migrate
from embedworker.errors import EmbeddedServerError, ServerUnavailable, UnsupportedServer
from embedworker.settings import Settings, load


@pytest.fixture(scope="module")
def chosen(server_folder: Path) -> Iterator[Settings]:
    """Settings with a data folder of their own, whose server is stopped at the end."""
    settings = load(data_dir=server_folder / "user data")
    yield settings
    server.stop(settings)


@pytest.fixture(scope="module")
def cluster(new_cluster: Callable[..., Cluster]) -> Cluster:
    made = new_cluster()
    made.start()
    return made


def _show(url: str, name: str) -> str:
    with connect(url, vectors=False) as connection:
        row = connection.execute("select current_setting(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])


def _password(cluster: Cluster) -> str:
    return cluster.passfile.read_text().rstrip().rpartition(":")[2]


@pytest.mark.slow
def test_keeps_data_and_address_between_runs(chosen: Settings) -> None:
    assert not server.status(chosen).created
    with pytest.raises(EmbeddedServerError, match="embedworker db start"):
        server.url(chosen)
    url = server.start(chosen)
    assert server.start(chosen) == url == server.url(chosen) == server.database_url(chosen)
    with connect(url, vectors=False) as connection:
        connection.execute("create table kept (x int); insert into kept values (42)")
    assert server.status(chosen).running
    assert server.stop(chosen)
    assert not server.stop(chosen)
    assert not server.status(chosen).running
    with pytest.raises(ServerUnavailable, match="embedworker db start"):
        connect(url)
    assert server.start(chosen) == url
    with connect(url, vectors=False) as connection:
        assert connection.execute("select x from kept").fetchone() == (42,)


@pytest.mark.slow
def test_a_server_that_somebody_is_connected_to_goes_on(
    chosen: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LEAVING", 0.2)
    url = server.start(chosen)
    with connect(url, vectors=False) as user:
        assert not server.stop_unused(chosen)
        assert user.execute("select 1").fetchone() == (1,)
    monkeypatch.undo()
    assert server.stop_unused(chosen)
    assert not server.status(chosen).running


def test_named_database_is_left_alone(server_folder: Path) -> None:
    folder = server_folder / "never made"
    named = load(data_dir=folder, database_url="postgresql://elsewhere/x")
    assert server.database_url(named) == "postgresql://elsewhere/x"
    assert not folder.exists()


def test_is_durable_and_private(cluster: Cluster) -> None:
    url = cluster.url()
    assert _show(url, "fsync") == "on"
    assert _show(url, "full_page_writes") == "on"
    assert _show(url, "listen_addresses") == "127.0.0.1"
    assert _show(url, "unix_socket_directories") == ""
    assert _show(url, "server_encoding") == "UTF8"
    for secret in (cluster.passfile, cluster.data):
        assert stat.S_IMODE(secret.stat().st_mode) & 0o077 == 0, secret
    password = _password(cluster)
    with pytest.raises(ServerUnavailable, match="check user and password") as caught:
        connect(url.replace(password, "hunter2"))
    assert "hunter2" not in str(caught.value)


def test_url_without_password_works_and_shows_none(cluster: Cluster) -> None:
    password = _password(cluster)
    assert len(password) >= 24
    assert password in cluster.url()
    assert password not in cluster.url(password=False)
    with connect(cluster.url(password=False), vectors=False) as connection:
        assert connection.info.dbname == "embedworker"


def test_contrib_and_pgvector_are_there_and_korean_has_letters(cluster: Cluster) -> None:
    with connect(cluster.url(), vectors=False) as connection:
        for extension in ("vector", "dblink", "pg_trgm"):
            connection.execute(f"create extension if not exists {extension}")
        row = connection.execute("select cardinality(show_trgm('한국어'))").fetchone()
    assert row is not None
    assert row[0] > 0


def test_missing_pgvector_says_what_to_do(bare_database: str) -> None:
    with pytest.raises(UnsupportedServer, match="run `embedworker migrate`, as a superuser"):
        connect(bare_database)
    migrate(bare_database)
    connect(bare_database).close()


def test_pgvector_in_any_schema_is_registered(bare_database: str) -> None:
    with connect(bare_database, vectors=False) as connection:
        connection.execute('create schema "Odd ""one"; create extension vector schema "Odd ""one"')
    with connect(bare_database) as connection:
        query = """select '[1,2]'::"Odd ""one".vector, array['[3]'::"Odd ""one".vector]"""
        row = connection.execute(query).fetchone()
    assert row is not None
    assert row[0].to_list() == [1, 2]
    assert row[1][0].to_list() == [3]


def test_survives_kill_9_with_a_busy_backend(cluster: Cluster) -> None:
    url = cluster.url()
    with connect(url, vectors=False) as connection:
        connection.execute("create table if not exists crash (x int); insert into crash values (1)")
    failed: list[BaseException] = []

    def sleep() -> None:
        try:
            with connect(url, vectors=False, application_name="busy") as busy:
                busy.execute("select pg_sleep(60)")
        except psycopg.OperationalError as error:
            failed.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    with connect(url, vectors=False) as watch:
        busy = (
            "select pid from pg_stat_activity where application_name = 'busy' and state = 'active'"
        )
        wait_until(lambda: watch.execute(busy).fetchone(), what="the busy backend")
    before = cluster.pid
    cluster.kill()
    assert "stopped" in repr(cluster)
    assert (cluster.data / "postmaster.pid").exists()
    assert cluster.start() == url
    assert cluster.pid not in (None, before)
    thread.join(20)
    assert failed
    with connect(url, vectors=False) as connection:
        assert connection.execute("select count(*) > 0 from crash").fetchone() == (True,)


def test_stale_pid_file_that_names_another_process(cluster: Cluster) -> None:
    """After a reboot or a container's restart the remembered pid is somebody else's."""
    cluster.stop()
    account = cluster.account
    other = None if account.is_caller else account.uid
    stranger = subprocess.Popen(["sleep", "60"], user=other)  # of the server's own user
    try:
        pid_file = cluster.data / "postmaster.pid"
        place = f"{cluster.data}\n1\n{cluster.port}\n\n127.0.0.1\n0 0\nready\n"
        pid_file.write_text(f"{stranger.pid}\n{place}")
        account.own(pid_file)
        assert "stopped" in repr(cluster)
        cluster.start()
        assert cluster.pid not in (None, stranger.pid)
    finally:
        stranger.terminate()
        stranger.wait()


def test_moves_when_its_port_is_taken(cluster: Cluster) -> None:
    cluster.stop()
    before = cluster.port
    assert before is not None
    with socket.create_server(("127.0.0.1", before)):
        url = cluster.start()
    assert cluster.port != before
    assert f":{cluster.port}/" in url
    assert _show(url, "port") == str(cluster.port)


@pytest.mark.slow
def test_server_that_cannot_start_says_why(new_cluster: Callable[..., Cluster]) -> None:
    broken = new_cluster(shared_buffers="lots")
    with pytest.raises(EmbeddedServerError, match=r"invalid value.*shared_buffers.*server\.log"):
        broken.start()
    assert broken.pid is None


@pytest.mark.slow
def test_half_made_cluster_is_made_again(new_cluster: Callable[..., Cluster]) -> None:
    fresh = new_cluster(fsync="off")
    partial = fresh.folder / "data.partial"
    partial.mkdir()
    (partial / "PG_VERSION").write_text("18\n")
    assert not fresh.exists
    fresh.start()
    assert not partial.exists()


@pytest.mark.slow
def test_started_by_several_processes_at_once(server_folder: Path) -> None:
    settings = load(data_dir=server_folder / "several")
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(3, mp_context=context) as pool:
            urls = set(pool.map(server.start, [settings] * 3))
        assert len(urls) == 1
        assert server.status(settings).running
        folder = server_folder / "several"
        assert not list(folder.glob(".unpacking-*"))
        with connect(urls.pop(), vectors=False) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
    finally:
        server.stop(settings)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has the problem")
def test_root_is_told_of_a_folder_the_server_cannot_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerError, match=r"does not run as root.*cannot enter"):
        server.start(load(data_dir=closed / "data"))
    assert not (closed / "data").exists()


def _command(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "embedworker.cli", *arguments],
        env={"PATH": os.environ["PATH"], "EMBEDWORKER_DATA_DIR": str(folder), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_command_line(chosen: Settings) -> None:
    folder = server.data_folder(chosen)
    server.stop(chosen)
    assert '"running": false' in _command("db", "status", "--json", folder=folder).stdout
    printed = _command("db", "url", folder=folder)
    assert printed.returncode == 0, printed.stderr
    with connect(printed.stdout.strip(), vectors=False) as connection:
        assert connection.info.dbname == "embedworker"
    started = _command("db", "start", folder=folder)
    assert "running on 127.0.0.1" in started.stdout
    password = (folder / "pgpass").read_text().rstrip().rpartition(":")[2]
    assert password not in started.stdout + started.stderr + printed.stdout + printed.stderr
    assert password in _command("db", "url", "--with-password", folder=folder).stdout
    assert _command("db", "stop", folder=folder).stdout == "stopped\n"
    assert _command("db", "stop", folder=folder).stdout == "was not running\n"
    wrong = _command("db", "halt", folder=folder)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_command_line_exit_codes(chosen: Settings) -> None:
    folder = server.data_folder(chosen)
    wrong = _command("db", "status", folder=folder, EMBEDWORKER_LEASE="0")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: EMBEDWORKER_LEASE is wrong: ")
    assert len(wrong.stderr.splitlines()) == 1
    failed = _command("db", "start", folder=Path("/proc/none"))
    assert failed.returncode == 1
    assert "set EMBEDWORKER_DATA_DIR" in failed.stderr
    traced = _command("db", "start", folder=Path("/proc/none"), EMBEDWORKER_DEBUG="1")
    assert "Traceback" in traced.stderr


@pytest.mark.parametrize(
    ("megabytes", "processors", "expected"),
    [
        (1024, 1, ("128MB", "64MB", "0", "8")),
        (8192, 2, ("1024MB", "512MB", "1", "8")),
        (256 * 1024, 64, ("2048MB", "512MB", "7", "64")),
    ],
)
def test_fits_its_machine(
    megabytes: int,
    processors: int,
    expected: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    server_folder: Path,
    installation: Installation,
) -> None:
    monkeypatch.setattr(
        "embedworker.database.embedded.configuration.memory", lambda: megabytes << 20
    )
    monkeypatch.setattr("embedworker.database.embedded.configuration.cpu_quota", lambda: processors)
    options = Cluster(server_folder / "never made", installation).options
    names = (
        "shared_buffers",
        "maintenance_work_mem",
        "max_parallel_maintenance_workers",
        "max_parallel_workers",
    )
    assert tuple(options[name] for name in names) == expected


def test_takes_what_fits(cluster: Cluster) -> None:
    assert _show(cluster.url(), "maintenance_work_mem") == cluster.options["maintenance_work_mem"]
