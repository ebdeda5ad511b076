"""examples/ray.yaml, against the schemas of Kubernetes and KubeRay and the command that it names.

``KUBERAY_CRD=/path/to/ray.io_rayjobs.yaml`` names the operator's own definition, which is large.
The schema below has the fields that the example uses. No operator runs here.
"""

import copy
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate as schemas
import pytest
import yaml

from embedworker.settings.reference import describe

pytestmark = pytest.mark.smoke

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray.yaml"
DOCUMENTS = {made["kind"]: made for made in yaml.safe_load_all(EXAMPLE.read_text())}
JOB = DOCUMENTS["RayJob"]
CLUSTER = JOB["spec"]["rayClusterSpec"]
TEMPLATES = [CLUSTER["headGroupSpec"]["template"], CLUSTER["workerGroupSpecs"][0]["template"]]
STARTED = {
    "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
    "template": {"type": "object", "required": ["spec"]},
}
COUNT = {"type": "integer", "minimum": 0}
SCHEMA = {
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"type": "object"},
        "spec": {
            "additionalProperties": False,
            "properties": {
                "entrypoint": {"type": "string"},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": COUNT,
                "backoffLimit": COUNT,
                "rayClusterSpec": {
                    "additionalProperties": False,
                    "required": ["headGroupSpec"],
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "headGroupSpec": {
                            "additionalProperties": False,
                            "required": ["template"],
                            "properties": STARTED,
                        },
                        "workerGroupSpecs": {
                            "items": {
                                "additionalProperties": False,
                                "required": ["groupName", "maxReplicas", "minReplicas", "template"],
                                "properties": {
                                    "groupName": {"type": "string"},
                                    "replicas": COUNT,
                                    "minReplicas": COUNT,
                                    "maxReplicas": COUNT,
                                    **STARTED,
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def test_kuberay_takes_it() -> None:
    check = jsonschema.Draft202012Validator(SCHEMA)
    assert [error.message for error in check.iter_errors(JOB)] == []
    wrong = copy.deepcopy(JOB)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 2
    assert [error.validator for error in check.iter_errors(wrong)] == ["additionalProperties"]


def test_the_definition_of_the_operator_takes_it() -> None:
    if "KUBERAY_CRD" not in os.environ:
        pytest.skip("KUBERAY_CRD names no file")
    definition = yaml.safe_load(Path(os.environ["KUBERAY_CRD"]).read_text())
    (schema,) = (
        version["schema"]["openAPIV3Schema"]
        for version in definition["spec"]["versions"]
        if version["name"] == "v1"
    )
    errors = jsonschema.Draft202012Validator(_strict(schema)).iter_errors(JOB)
    assert [f"{list(error.path)}: {error.message[:200]}" for error in errors] == []


def _strict(schema: Any) -> Any:
    """Refuse unknown fields, which a server drops."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _strict(value) for name, value in schema.items()}
    if made.get("type") == "object" and "properties" in made:
        made.setdefault("additionalProperties", False)
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


@pytest.mark.parametrize("place", range(len(TEMPLATES)))
def test_kubernetes_takes_the_pods(place: int) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **TEMPLATES[place]}
    pod["metadata"] = {"name": "made-up", **pod["metadata"]}
    schemas.validate(pod, schemas.latest_version(), strict=True)
    wrong = {**pod, "spec": {**pod["spec"], "containerss": []}}
    with pytest.raises(schemas.ValidationError):
        schemas.validate(wrong, schemas.latest_version(), strict=True)


def test_the_claim_of_the_models_is_the_one_that_the_pods_mount() -> None:
    claim = DOCUMENTS["PersistentVolumeClaim"]
    schemas.validate(claim, schemas.latest_version(), strict=True)
    for template in TEMPLATES:
        (volume,) = template["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_command_is_understood_and_the_settings_are_real() -> None:
    program, *arguments = shlex.split(JOB["spec"]["entrypoint"])
    assert program == "embedworker"
    said = subprocess.run(
        [sys.executable, "-m", "embedworker.cli", *arguments, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    known = {row.variable for row in describe()}
    for template in TEMPLATES:
        for container in template["spec"]["containers"]:
            names = {entry["name"] for entry in container["env"]}
            assert {name for name in names if name.startswith("EMBEDWORKER_")} <= known
    workers = int(arguments[arguments.index("--workers") + 1])
    (group,) = CLUSTER["workerGroupSpecs"]
    assert group["replicas"] == group["maxReplicas"] == workers
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert str(limits["nvidia.com/gpu"]) == arguments[arguments.index("--gpus") + 1]
