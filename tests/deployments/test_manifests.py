"""What is handed to a cluster is valid where it is read, agrees with itself and with the project. None of it was run on a cluster here."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate import ValidationError
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import apply_values
from typer.main import get_command

from flows.cli import app

REPOSITORY = Path(__file__).resolve().parents[2]
KUBERNETES = REPOSITORY / "deployments" / "kubernetes"
KUBERAY = json.loads(Path(__file__).with_name("kuberay.schema.json").read_text())
VERSION = "1.34"
CLUSTERS = ("raycluster.yaml", "rayjob.yaml")


def _read(name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((KUBERNETES / name).read_text(encoding="utf-8"))
    return manifest


def _check_kubernetes(manifest: dict[str, Any]) -> None:
    """Raise for what the Kubernetes API would refuse, unknown fields included."""
    kubernetes_validate.validate(manifest, VERSION, strict=True)


def _check_kuberay(manifest: dict[str, Any]) -> None:
    schema = {"$defs": KUBERAY["$defs"], "$ref": f"#/$defs/{manifest['kind']}"}
    Draft202012Validator(schema).validate(manifest)


def _cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec.get("rayClusterSpec", spec)  # type: ignore[no-any-return]


def _pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = _cluster(manifest)
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def _as_pod(template: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **template}


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_manifests_are_what_kuberay_and_kubernetes_read(name: str) -> None:
    manifest = _read(name)
    _check_kuberay(manifest)
    for template in _pods(manifest):
        _check_kubernetes(_as_pod(template))


def test_the_checks_find_what_is_wrong() -> None:
    cluster = _read("raycluster.yaml")
    cluster["spec"]["autoscalerOptions"]["idleTimeout"] = 5
    with pytest.raises(Exception, match="idleTimeout"):
        _check_kuberay(cluster)
    [pod, *_] = _pods(cluster)
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(ValidationError):
        _check_kubernetes(_as_pod(pod))


def test_the_home_is_a_claim_that_all_pods_mount_in_the_same_place() -> None:
    claim = _read("home.yaml")
    _check_kubernetes(claim)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    pods = [pod for name in CLUSTERS for pod in _pods(_read(name))] + [_flow_job()["spec"]["template"]]
    for pod in pods:
        [container] = pod["spec"]["containers"]
        home = next(v for v in container["env"] if v["name"] == "ALIGNFLOW_HOME")["value"]
        mounted = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        [volume] = [v for v in pod["spec"]["volumes"] if v.get("persistentVolumeClaim")]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert Path(home).is_relative_to(mounted[volume["name"]])


@pytest.mark.parametrize("name", CLUSTERS)
def test_nodes_run_the_ray_of_the_lock_in_one_image_and_want_whole_gpus(name: str) -> None:
    manifest = _read(name)
    [locked] = re.findall(r"^ray==(.*)$", (REPOSITORY / "deployments/lock/gpu.txt").read_text(), flags=re.MULTILINE)
    assert _cluster(manifest)["rayVersion"] == locked
    containers = [container for pod in _pods(manifest) for container in pod["spec"]["containers"]]
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert {container["image"] for container in containers} == {f"registry.example.com/alignflow:{version}"}
    for container in containers:
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_a_run_of_its_own_is_admitted_whole_and_leaves_nothing() -> None:
    job = _read("rayjob.yaml")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert job["spec"]["shutdownAfterJobFinishes"]
    # Kueue counts the pods that are there from the start.
    assert "enableInTreeAutoscaling" not in _cluster(job)
    for group in _cluster(job)["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_the_entrypoint_is_a_command_that_exists() -> None:
    words = shlex.split(_read("rayjob.yaml")["spec"]["entrypoint"])
    assert words[:2] == ["env", "RAY_ADDRESS=http://127.0.0.1:8265"]
    assert words[2] == "alignflow"
    command = get_command(app).commands[words[3]]  # type: ignore[attr-defined]
    command.make_parser(command.context_class(command)).parse_args(list(words[4:]))


def _flow_job(**given: Any) -> dict[str, Any]:
    """The manifest that a Prefect worker makes of the template: defaults, and what it adds itself."""
    template = json.loads((KUBERNETES / "prefect-job-template.json").read_text())
    defaults = {name: field["default"] for name, field in template["variables"]["properties"].items() if "default" in field}
    values = defaults | {"name": "align", "labels": {"app": "alignflow"}, "command": "prefect flow-run execute"} | given
    job: dict[str, Any] = apply_values(template["job_configuration"], values)["job_manifest"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    # What the worker does before it submits: variables as a list, the command as words.
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    container["args"] = shlex.split(container["args"])
    return job


def test_prefect_takes_the_template_and_makes_a_job_of_it() -> None:
    template = json.loads((KUBERNETES / "prefect-job-template.json").read_text())
    WorkPoolCreate(name="kubernetes", type="kubernetes", base_job_template=template)
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    _check_kubernetes(_flow_job())
    _check_kubernetes(_flow_job(grace_seconds=30, memory_request="8Gi"))


def test_flow_pods_find_the_cluster_that_the_other_manifest_makes() -> None:
    cluster = _read("raycluster.yaml")
    [container] = _flow_job()["spec"]["template"]["spec"]["containers"]
    variables = {v["name"]: v["value"] for v in container["env"]}
    name = cluster["metadata"]["name"]
    assert variables["RAY_ADDRESS"] == f"http://{name}-head-svc:8265"
    assert variables["RAY_AUTH_MODE"] == cluster["spec"]["authOptions"]["mode"]
    [token] = [v["secret"]["secretName"] for v in _flow_job()["spec"]["template"]["spec"]["volumes"] if "secret" in v]
    assert token == name  # KubeRay calls the secret as the cluster


def test_the_image_is_built_from_what_is_there() -> None:
    lines = (REPOSITORY / "deployments" / "container" / "Dockerfile").read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    [torch] = re.findall(r"^TORCH\s*:= (\S+)", makefile, flags=re.MULTILINE)
    assert f"ARG TORCH={torch}\n" in lines
    for target in ("cpu", "gpu"):
        assert (REPOSITORY / "deployments" / "lock" / f"{target}.txt").is_file()
    for source in re.findall(r"^COPY (\S+) ", lines, flags=re.MULTILINE):
        assert (REPOSITORY / source).exists()
