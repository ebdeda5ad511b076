"""docker-compose.yml, examples/embedworker@.service and examples/kubernetes.yaml, against what is.

No container and no unit is started here. What they name is real: commands, flags, settings, ports,
paths and roles.
"""

import configparser
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import kubernetes_validate as schemas
import psycopg
import pytest
import yaml
from fix_worker import Workers
from oracle import wait_settled
from prometheus_client import CollectorRegistry
from psycopg.conninfo import make_conninfo
from waiting import wait_until

from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate
from embedworker.model.catalog import TESTING_MODEL
from embedworker.service.monitoring.endpoint import Endpoint
from embedworker.service.monitoring.readiness import Reason
from embedworker.settings import load
from embedworker.settings.reference import describe

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
MANIFEST: list[dict[str, Any]] = list(
    yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
)
KUBERNETES = {document["kind"]: document for document in MANIFEST}
JOB = KUBERNETES["Job"]["spec"]["template"]["spec"]
WORKERS = KUBERNETES["StatefulSet"]["spec"]
POD = WORKERS["template"]["spec"]
CONTAINERS = (*JOB["containers"], *POD["containers"])
UNIT = EXAMPLES / "embedworker@.service"
LONGEST = 60.0  # seconds on a machine that does much else


def unit() -> dict[str, dict[str, list[str]]]:
    """Sections of the unit; each setting with all its values, since a name may come again."""
    sections: dict[str, dict[str, list[str]]] = {}

    class Collected(dict[str, Any]):
        def __setitem__(self, name: str, value: Any) -> None:
            if isinstance(value, list) and name in self:
                self[name].extend(value)
            else:
                super().__setitem__(name, value)

    parser = configparser.RawConfigParser(
        strict=False, dict_type=Collected, interpolation=None, empty_lines_in_values=False
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as its documentation says
    parser.read(UNIT)
    for name in parser.sections():
        sections[name] = {key: value.split("\n") for key, value in parser.items(name)}
    return sections


def environments() -> dict[str, dict[str, str]]:
    """What each process is given that has a value here."""
    service = unit()["Service"]
    found = {"unit": dict(pair.split("=", 1) for pair in service["Environment"])}
    for name in ("migrate", "worker"):
        found[f"compose {name}"] = COMPOSE["services"][name]["environment"]
    for container in CONTAINERS:
        found[f"pod {container['name']}"] = {
            entry["name"]: entry["value"] for entry in container["env"] if "value" in entry
        }
    return found


def commands() -> dict[str, list[str]]:
    program, *arguments = shlex.split(unit()["Service"]["ExecStart"][0])
    assert Path(program).name == "embedworker"
    found = {"unit": arguments}
    for name in ("migrate", "worker"):
        found[f"compose {name}"] = COMPOSE["services"][name]["command"]
    for container in CONTAINERS:
        found[f"pod {container['name']}"] = container["args"]
    return found


@pytest.mark.parametrize("place", commands())
def test_commands_are_understood(place: str) -> None:
    arguments = commands()[place]
    said = subprocess.run(
        [sys.executable, "-m", "embedworker.cli", *arguments, "--help"],
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert f"embedworker.cli {arguments[0]}" in said.stdout


@pytest.mark.parametrize("place", environments())
def test_settings_are_real(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {row.variable for row in describe()}
    given = {
        name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
        for name, value in environments()[place].items()
        if name.startswith("EMBEDWORKER_")
    }
    assert given.keys() <= known
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = load()
    assert str(settings.cache_dir) == given["EMBEDWORKER_CACHE_DIR"]
    if place.endswith("worker") or place == "unit":
        assert settings.metrics_port == 9464


def test_no_password_is_written() -> None:
    for file in (ROOT / "docker-compose.yml", EXAMPLES / "kubernetes.yaml", UNIT):
        assert not re.search(r"://[^\s@/]*:[^\s@]*@", file.read_text()), file
    for place, environment in environments().items():
        for name, value in environment.items():
            assert "PASSWORD" not in name or re.match(r"\$\{\w+_PASSWORD:\?", value), place
            assert "DATABASE_URL" not in name or "compose" in place
    assert unit()["Service"]["EnvironmentFile"] == ["/etc/embedworker/%i.env"]
    secrets = {
        container["name"]: entry["valueFrom"]["secretKeyRef"]["name"]
        for container in CONTAINERS
        for entry in container["env"]
        if entry["name"] == "DATABASE_URL"
    }
    # The owner's login is not in a pod that runs for months.
    assert secrets == {"migrate": "embedworker-owner", "worker": "embedworker"}


@contextmanager
def endpoint(reasons: list[Reason]) -> Iterator[int]:
    served = Endpoint("127.0.0.1", 0, CollectorRegistry(), lambda: reasons)
    served.start()
    try:
        yield int(served.url.rpartition(":")[2])
    finally:
        served.stop()


@pytest.mark.smoke
def test_health_of_the_container() -> None:
    """Its command, run as it stands but for the port."""
    worker = COMPOSE["services"]["worker"]
    kind, program, *rest = worker["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python")
    port = worker["environment"]["EMBEDWORKER_METRICS_PORT"]
    assert f"http://127.0.0.1:{port}/readyz" in rest[-1]
    for reasons, ended in ([], 0), ([Reason("passages", "not connected")], 1):
        with endpoint(reasons) as there:
            command = [part.replace(f":{port}/", f":{there}/") for part in rest]
            said = subprocess.run(
                [sys.executable, *command], capture_output=True, timeout=LONGEST, check=False
            )
        assert said.returncode == ended, said.stderr


def test_probes_of_the_pod() -> None:
    (worker,) = POD["containers"]
    environment = {entry["name"]: entry.get("value") for entry in worker["env"]}
    (port,) = worker["ports"]
    assert str(port["containerPort"]) == environment["EMBEDWORKER_METRICS_PORT"]
    annotations = WORKERS["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == environment["EMBEDWORKER_METRICS_PORT"]
    assert environment["EMBEDWORKER_METRICS_HOST"] == "0.0.0.0"  # noqa: S104  (a pod's own)
    paths = {
        kind: worker[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "liveness", "readiness")
    }
    assert all(worker[f"{kind}Probe"]["httpGet"]["port"] == port["name"] for kind in paths)
    with endpoint([Reason("database", "away")]) as there:
        answers = {}
        for kind, path in paths.items():
            try:
                with urlopen(f"http://127.0.0.1:{there}{path}") as answer:
                    answers[kind] = answer.status
            except HTTPError as error:
                with error:
                    answers[kind] = error.code
    assert answers == {"startup": 200, "liveness": 200, "readiness": 503}


def test_pod_may_do_little() -> None:
    assert POD["securityContext"] == JOB["securityContext"]
    assert POD["securityContext"]["runAsNonRoot"]
    user = re.search(r"--uid (\d+)", COMPOSE["x-embedworker"]["build"]["dockerfile_inline"])
    assert user is not None
    assert POD["securityContext"]["runAsUser"] == int(user[1])
    volumes = {volume["name"] for volume in JOB["volumes"]}
    kept = {claim["metadata"]["name"] for claim in WORKERS["volumeClaimTemplates"]}
    assert {volume["name"] for volume in POD["volumes"]} | kept == volumes
    for container in CONTAINERS:
        assert container["image"] == COMPOSE["x-embedworker"]["image"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["resources"]["limits"]["memory"]
        places = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert places == {"/models", "/tmp"}  # noqa: S108  (a pod's own)


def test_the_manifest_fits_together() -> None:
    """Each selector finds the workers and not the migration, which waits for nobody."""
    labels = WORKERS["template"]["metadata"]["labels"]
    of_job = KUBERNETES["Job"]["spec"]["template"]["metadata"]["labels"]
    (spread,) = POD["topologySpreadConstraints"]
    selectors = [
        WORKERS["selector"]["matchLabels"],
        KUBERNETES["Service"]["spec"]["selector"],
        KUBERNETES["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= of_job.items()
    assert WORKERS["replicas"] > KUBERNETES["PodDisruptionBudget"]["spec"]["minAvailable"] > 0
    assert WORKERS["serviceName"] == KUBERNETES["Service"]["metadata"]["name"]
    assert KUBERNETES["Service"]["spec"]["ports"][0]["name"] == "metrics"


@pytest.mark.parametrize("kind", KUBERNETES)
def test_kubernetes_takes_it(kind: str) -> None:
    """By the schemas of the newest version that the package of the schemas has."""
    schemas.validate(KUBERNETES[kind], schemas.latest_version(), strict=True)
    wrong = {**KUBERNETES[kind], "spec": {**KUBERNETES[kind]["spec"], "replicass": 2}}
    with pytest.raises(schemas.ValidationError):
        schemas.validate(wrong, schemas.latest_version(), strict=True)


def test_compose_is_whole() -> None:
    services = COMPOSE["services"]
    assert list(services) == ["db", "migrate", "worker"]
    assert [config["source"] for config in services["db"]["configs"]] == list(COMPOSE["configs"])
    for service in services.values():
        assert service["mem_limit"]
        for volume in service["volumes"]:
            assert volume.split(":")[0] in COMPOSE["volumes"]
        for other in service.get("depends_on", {}):
            assert other in services
    for name in ("migrate", "worker"):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]


def test_the_roles_of_compose_are_enough(
    new_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """A server as compose makes it: the worker is no superuser, and indexes the table of app."""
    script = re.sub(
        r"\$\{\w+_PASSWORD(:\?[^}]*)?\}", "secret", COMPOSE["configs"]["roles"]["content"]
    )
    cluster = new_cluster()
    cluster.start()
    with psycopg.connect(cluster.url(), autocommit=True) as server:
        server.execute("create database app")
    with psycopg.connect(cluster.url("app"), autocommit=True) as database:
        database.execute(script)
    assert migrate(cluster.url("app"), model=TESTING_MODEL) == []
    logins = {
        name: make_conninfo(cluster.url("app"), user=name, password="secret")
        for name in ("app", "embedworker")
    }
    workers = Workers(logins["embedworker"], tmp_path)
    try:
        worker = workers.start(both_lanes=True, index_after_rows="100")
        with psycopg.connect(logins["app"], autocommit=True) as app:
            app.execute("create table article (id integer primary key, body text)")
            app.execute("insert into article select n, 'text ' || n from generate_series(1, 200) n")
            app.execute("select embed.enable('article', array['body'])")
            wait_settled(app, "article")
            state = "select from embed.status where name = 'article' and index_state = 'valid'"
            wait_until(lambda: app.execute(state).rowcount, LONGEST)
            found = app.execute("select count(*) from embed.search(null::article, 'text 7')")
            assert found.fetchone() == (10,)
            superuser = "select rolsuper from pg_roles where rolname = 'embedworker'"
            assert app.execute(superuser).fetchone() == (False,)
        assert worker.terminate() == 0
        assert "ERROR" not in worker.output()
    finally:
        for started in workers.all:
            started.kill()


def test_systemd_hears_of_the_start_of_life_and_of_the_end(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a unit of Type=notify with WatchdogSec=1 is told."""
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(place))
        systemd.settimeout(LONGEST)
        monkeypatch.setenv("NOTIFY_SOCKET", str(place))
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        worker = workers.start(both_lanes=True)
        assert [systemd.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        assert worker.terminate() == 0
        said = set()
        while b"STOPPING=1" not in said:
            said.add(systemd.recv(100))
        assert said <= {b"WATCHDOG=1", b"STOPPING=1"}


def test_a_socket_of_systemd_that_is_gone_ends_no_worker(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell leaves it behind that a service has started."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    worker = workers.start(both_lanes=True)
    assert worker.terminate() == 0
    assert "systemd was not told READY=1" in worker.output()
    assert "systemd was not told STOPPING=1" in worker.output()
    assert "Traceback" not in worker.output()


def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    service = unit()["Service"]
    assert service["KillSignal"] == ["SIGTERM"]
    assert service["RestartPreventExitStatus"] == ["2"]
    assert (service["Type"], service["WatchdogSec"]) == (["notify"], ["120"])
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed; on Debian: apt-get install systemd")
    copy = tmp_path / UNIT.name.replace("@", "@shop")
    program = shlex.split(service["ExecStart"][0])[0]
    copy.write_text(UNIT.read_text().replace(f"ExecStart={program}", f"ExecStart={sys.executable}"))
    said = subprocess.run(
        [analyze, "verify", "--man=no", copy],
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert copy.name not in said.stderr, said.stderr


def test_they_are_listed() -> None:
    said = (EXAMPLES / "README.md").read_text()
    assert UNIT.name in said
    assert "kubernetes.yaml" in said
