"""docker-compose.yml, examples/embedworker.service and examples/kubernetes.yaml, against what is.

None of them runs here. What they name is real: commands, flags, settings, ports and paths.
"""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client import CollectorRegistry

from worker.service.endpoint import Endpoint
from worker.service.readiness import Reason
from worker.settings import describe, load

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
KUBERNETES: dict[str, Any] = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
POD = KUBERNETES["spec"]["template"]["spec"]
UNIT = EXAMPLES / "embedworker.service"
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
    for container in (*POD["initContainers"], *POD["containers"]):
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
    for container in (*POD["initContainers"], *POD["containers"]):
        found[f"pod {container['name']}"] = container["args"]
    return found


@pytest.mark.parametrize("place", commands())
def test_commands_are_understood(place: str) -> None:
    arguments = commands()[place]
    said = subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments, "--help"],
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert f"worker.cli {arguments[0]}" in said.stdout


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
            assert "PASSWORD" not in name or value.startswith("${POSTGRES_PASSWORD:?"), place
            assert "DATABASE_URL" not in name or "compose" in place
    assert unit()["Service"]["EnvironmentFile"] == ["/etc/embedworker.env"]
    for container in (*POD["initContainers"], *POD["containers"]):
        (secret,) = [entry for entry in container["env"] if entry["name"] == "DATABASE_URL"]
        assert secret["valueFrom"]["secretKeyRef"]["name"] == "embedworker"


@contextmanager
def endpoint(reasons: list[Reason]) -> Iterator[int]:
    served = Endpoint("127.0.0.1", 0, CollectorRegistry(), lambda: reasons)
    served.start()
    try:
        yield int(served.url.rpartition(":")[2])
    finally:
        served.stop()


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
    annotations = KUBERNETES["spec"]["template"]["metadata"]["annotations"]
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
    assert KUBERNETES["spec"]["replicas"] == 2
    labels = KUBERNETES["spec"]["template"]["metadata"]["labels"]
    assert KUBERNETES["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert POD["securityContext"]["runAsNonRoot"]
    user = re.search(r"--uid (\d+)", COMPOSE["x-embedworker"]["build"]["dockerfile_inline"])
    assert user is not None
    assert POD["securityContext"]["runAsUser"] == int(user[1])
    volumes = {volume["name"] for volume in POD["volumes"]}
    for container in (*POD["initContainers"], *POD["containers"]):
        assert container["image"] == COMPOSE["x-embedworker"]["image"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["resources"]["limits"]["memory"]
        places = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert places == {"/models", "/tmp"}  # noqa: S108  (a pod's own)


def test_compose_is_whole() -> None:
    services = COMPOSE["services"]
    assert list(services) == ["db", "migrate", "worker"]
    for service in services.values():
        for volume in service["volumes"]:
            assert volume.split(":")[0] in COMPOSE["volumes"]
        for other in service.get("depends_on", {}):
            assert other in services
    for name in ("migrate", "worker"):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]


def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    service = unit()["Service"]
    assert service["KillSignal"] == ["SIGTERM"]
    assert service["RestartPreventExitStatus"] == ["2"]
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed; on Debian: apt-get install systemd")
    copy = tmp_path / UNIT.name
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
    assert UNIT.name not in said.stderr, said.stderr


def test_they_are_listed() -> None:
    said = (EXAMPLES / "README.md").read_text()
    assert UNIT.name in said
    assert "kubernetes.yaml" in said
