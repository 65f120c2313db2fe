"""The whole product on a tiny model: real Prefect server and worker, real Ray, real MLflow, from `up` to `down`."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from mlflow import MlflowClient
from tiny_models import tiny_model

from flows.services.processes import Records, free_port
from flows.settings.presets import known_presets, resolve
from tasks.runtime.contract.home import Home
from tasks.runtime.execution.start import git_commit
from tests.flows.browser import Browser, find_chromium
from tests.flows.test_homes_that_are_only_read import can_mount

REPOSITORY = Path(__file__).resolve().parents[2]
NODES = 15

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass
class Installation:
    """A home with running services, and the model that is aligned in it."""

    home: Home
    environment: dict[str, str]
    model: Path
    ports: list[str]

    def up(self, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
        return self.run("flows.cli", "up", *self.ports, timeout_s=timeout_s)

    def run(self, *command: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command],
            env=self.environment,
            cwd=self.home.root,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def newest_run(self) -> Path:
        return max(self.home.runs.iterdir(), key=lambda folder: folder.stat().st_mtime)

    def prefect(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What Prefect's HTTP interface answers: to a POST of `body`, else to a GET."""
        url = f"{self.environment['PREFECT_API_URL']}{path}"
        answer = httpx.get(url) if body is None else httpx.post(url, json=body)
        return answer.raise_for_status().json()

    def flow_run(self, name: str) -> dict[str, Any]:
        (found,) = self.prefect("/flow_runs/filter", {"flow_runs": {"name": {"any_": [name]}}})
        return dict(found)

    def task_states(self, flow_run: str, timeout_s: float = 400) -> dict[str, str]:
        """Node -> name of its state in the flow run, when that is completed."""
        deadline = time.monotonic() + timeout_s
        while (state := self.prefect(f"/flow_runs/{flow_run}")["state_name"]) != "Completed":
            assert state not in ("Failed", "Crashed") and time.monotonic() < deadline, state
            time.sleep(1)
        tasks = self.prefect("/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
        return {task["name"]: task["state_name"] for task in tasks}


class Sockets:
    """Who listens where among all processes of a home, while the block runs: address and port, and a command line."""

    def __init__(self, home: Home) -> None:
        self.seen: dict[str, str] = {}
        self._home = home
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Sockets:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.5):
            for process in {p for record in Records(self._home.pids).all() for p in record.family}:
                with suppress(psutil.Error):
                    for each in process.net_connections("inet"):
                        if each.status == psutil.CONN_LISTEN or (each.type == socket.SOCK_DGRAM and not each.raddr):
                            self.seen[f"{each.laddr.ip} {each.laddr.port}"] = " ".join(process.cmdline())


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    root = Path(tempfile.mkdtemp(prefix="e2e", dir="/tmp"))
    model = tiny_model(tmp_path_factory.mktemp("model"), "llama")
    foreign = ("PREFECT_", "MLFLOW_", "RAY_", "ALIGNFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {"HOME": str(root / "user"), "ALIGNFLOW_HOME": str(root / "home"), "PYTHONPATH": str(REPOSITORY)}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    (root / "user").mkdir()
    ports = [f"--{name}-port={free_port()}" for name in ("prefect", "mlflow", "ray", "ray-dashboard")]
    place = Installation(Home.open(root / "home"), environment, model, ports)
    try:
        answer = place.up(timeout_s=300)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        exports = dict(re.findall(r"^export (\w+)=(.*)$", answer.stdout, flags=re.MULTILINE))
        environment.update(exports)
        yield place
    finally:
        place.run("flows.cli", "down", timeout_s=200)
        shutil.rmtree(root, ignore_errors=True)


def test_each_preset_that_ships_is_deployed(installation: Installation) -> None:
    deployed = installation.prefect("/deployments/filter", {})
    assert {deployment["name"] for deployment in deployed} == known_presets().keys() >= {"quickstart", "tiny"}


def test_a_deployed_run_goes_from_a_model_folder_to_a_report_and_leaves_its_traces(installation: Installation) -> None:
    model = json.dumps({"path": str(installation.model)})
    with Sockets(installation.home) as sockets:
        answer = installation.run("prefect", "deployment", "run", "align/tiny", "-p", f"model={model}", "--watch")
    worker_log = (installation.home.root / "logs" / "worker.log").read_text()
    assert answer.returncode == 0, answer.stdout[-3000:] + worker_log[-6000:]

    assert any("gcs_server" in who for who in sockets.seen.values()) and len(sockets.seen) > 10
    others = {f"{ip}: {who}" for ip, who in sockets.seen.items() if not ip.startswith(("127.", "::1 ", "::ffff:127."))}
    assert others == set(), "nothing of the services or of a run listens for other machines"

    folder = installation.newest_run()
    shown = re.sub(r"\s", "", answer.stdout)  # lines are folded
    for said in ("sft1/2", f"({(folder / 'report.html').as_uri()})", "procedures.score"):
        assert said in shown, "whoever watches the run sees stages, how far they are, and what came out"
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    verdict = json.loads((folder / "verdict.json").read_text())
    assert set(verdict["models"]) == {"base", "sft", "preference", "online"}
    report = (folder / "report.html").read_text()
    assert "<svg" in report
    assert re.findall(r"\ssrc=|<link|@import|url\(", report) == [], "the report needs nothing from elsewhere"
    assert len(list((folder / "nodes").iterdir())) == NODES

    client = MlflowClient(installation.environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == NODES + 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.run_name == folder.name
    assert parent.data.metrics["online/procedures.score"] == verdict["models"]["online"]["sampled"]["procedures.score"]["mean"]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["report.html"]
    online = next(run for run in runs if run.info.run_name == "online")
    assert any("kl" in name for name in online.data.metrics)


def test_prefect_mlflow_and_report_link_to_each_other(installation: Installation) -> None:
    folder = installation.newest_run()
    flow_run = installation.flow_run(folder.name)
    client = MlflowClient(installation.environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id], f"run_name = '{folder.name}'")
    in_prefect = f"{installation.environment['PREFECT_API_URL'].removesuffix('/api')}/runs/flow-run/{flow_run['id']}"
    in_mlflow = f"{installation.environment['MLFLOW_TRACKING_URI']}/#/runs/{tracked.info.run_id}"

    links = set(re.findall(r'<a href="(http[^"]*)"', (folder / "report.html").read_text()))
    assert links == {in_prefect, in_mlflow}
    note = tracked.data.tags["mlflow.note.content"]
    assert f"({in_prefect})" in note and "report.html" in note
    artifacts = installation.prefect("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run["id"]]}}})
    told = {artifact["key"]: artifact["data"] for artifact in artifacts}
    assert f"({in_mlflow})" in told["links"] and f"({in_mlflow})" in told["verdict"]
    assert str(folder / "report.html") in told["links"] and str(folder / "report.html") in told["verdict"]
    assert [f"commit:{(git_commit() or '')[:10]}"] == [tag for tag in flow_run["tags"] if tag.startswith("commit:")]
    assert {"preset:tiny", f"model:{installation.model.name}", "trains:sft", "trains:online"} <= set(flow_run["tags"])
    assert len(set(flow_run["tags"])) == len(flow_run["tags"]), "the deployment has tags too"
    assert httpx.get(f"{in_prefect.partition('/runs')[0]}/ui-settings").json()["api_url"] == "/api", (
        "pages ask where they came from"
    )


def test_the_same_run_again_finds_everything_cached(installation: Installation) -> None:
    setting = ("--preset", "tiny", "--name", "again", "--set", f"model.path={installation.model}")
    answer = installation.run("flows.cli", "run", *setting)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.count(" cached (") == NODES
    assert "report: " in answer.stdout
    folder = installation.newest_run()
    assert folder.name.startswith("again-")
    pages = json.loads((folder / "status.json").read_text())["links"]
    assert pages["Prefect"].endswith(installation.flow_run(folder.name)["id"])
    for where in ("Prefect", "MLflow"):
        assert f"seen in {where}: {pages[where]}" in answer.stdout + answer.stderr
    shown = installation.run("prefect", "artifact", "inspect", "verdict")
    assert "procedures.score" in shown.stdout


@can_mount
def test_a_home_that_cannot_be_written_shows_the_report_of_a_run(installation: Installation) -> None:
    name = installation.newest_run().name
    mounted = 'mount --bind "$ALIGNFLOW_HOME" "$ALIGNFLOW_HOME" && mount -o remount,ro,bind "$ALIGNFLOW_HOME" && '
    command = ["unshare", "-m", "sh", "-c", f"{mounted} exec {sys.executable} -m flows.cli report {name}"]
    answer = subprocess.run(command, env=installation.environment, capture_output=True, text=True, timeout=100, check=False)
    assert answer.returncode == 0, answer.stderr
    assert str(installation.home.runs / name / "report.html") in answer.stdout.replace("\n", "")


def test_one_online_setting_reruns_online_and_what_follows(installation: Installation) -> None:
    setting = ("--preset", "tiny", "--set", f"model.path={installation.model}", "--set", "online.kl_coef=0.5")
    answer = installation.run("flows.cli", "plan", *setting)
    assert answer.returncode == 0, answer.stderr
    to_run = re.findall(r"^(\w+) +run ", answer.stdout, flags=re.MULTILINE)
    assert to_run == ["online", "convert_online", "evaluate_online", "compare"]
    assert "config.kl_coef: 0.01 -> 0.5" in answer.stdout
    refused = installation.run("flows.cli", "plan", *setting, "--from", "compare")
    assert refused.returncode == 10
    assert "start with --from online" in refused.stderr


def submit_form(installation: Installation, deployment: dict[str, Any], folder: Path, value: float) -> None:
    """Open the form of a deployment, see the preset's values in it, set preference.beta and send it off."""
    shown = deployment["parameters"]
    with Browser(folder / "browser") as page:
        pages = installation.environment["PREFECT_API_URL"].removesuffix("/api")
        page.open(f"{pages}/deployments/deployment/{deployment['id']}/run")
        beta, steps = field("preference", "beta"), field("preference", "max_steps")
        page.wait_for(f"!!({beta})")
        assert page.evaluate(f"{field('preset')}.querySelector('textarea').value") == "mine"
        assert page.evaluate(f"{field('model', 'path')}.querySelector('textarea').value") == str(installation.model)
        assert page.evaluate(f"{steps}.querySelector('input').value") == str(shown["preference"]["max_steps"])
        page.evaluate(f"[...{beta}.querySelectorAll('button')].find(button => button.innerText === 'float').click()")
        page.wait_for(f"!!{beta}.querySelector('input')")
        page.evaluate(f"{beta}.querySelector('input').select()")
        page.type_text(str(value))
        page.evaluate("document.querySelector('button[type=submit]').click()")
        page.wait_for("!location.pathname.endsWith('/run')")


def field(*path: str) -> str:
    """JavaScript for the part of Prefect's form with the setting at `path`: sections hold those within them."""
    return f"""({json.dumps(path)}.reduce((place, name) => [...(place?.querySelectorAll(".schema-form-property") ?? [])].find(part =>
        part.querySelector(".schema-form-property__label").innerText.split(" ")[0] === name &&
        (part.parentElement.closest(".schema-form-property") ?? document) === place), document))"""


BROWSER = pytest.param(True, marks=pytest.mark.skipif(find_chromium() is None, reason="takes Chromium"), id="in a browser")


@pytest.mark.parametrize("in_browser", [pytest.param(False, id="over HTTP"), BROWSER])
def test_the_form_shows_the_preset_and_a_changed_value_runs_its_branch_only(
    installation: Installation, tmp_path: Path, in_browser: bool
) -> None:
    preset = installation.home.presets / "mine.yaml"
    preset.write_text(f"# On my model.\nextends: tiny\nmodel: {{path: {installation.model}}}\n")
    assert installation.run("flows.cli", "deploy", "mine").returncode == 0
    deployment = installation.prefect("/deployments/name/align/mine")
    shown = deployment["parameters"]
    assert shown == {"preset": "mine", **resolve("mine", home_presets=installation.home.presets).model_dump(mode="json")}
    sections = deployment["parameter_openapi_schema"]["properties"]
    assert set(shown) <= set(sections), "every value has its place in the form"
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"

    beta = 0.37 if in_browser else 0.41
    changed = {**shown, "preference": {**shown["preference"], "beta": beta}}
    if in_browser:
        submit_form(installation, deployment, tmp_path, beta)
    else:
        installation.prefect(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": changed})
    newest = {"deployments": {"id": {"any_": [deployment["id"]]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 1}
    [made] = installation.prefect("/flow_runs/filter", newest)
    assert {name: made["parameters"][name] for name in changed} == changed
    ran = {name for name, state in installation.task_states(made["id"]).items() if state != "Cached"}
    assert ran == {"preference", "convert_preference", "evaluate_preference", "compare"}


def test_of_two_runs_of_a_deployment_the_second_waits_for_its_turn(installation: Installation) -> None:
    deployment = installation.prefect("/deployments/name/align/mine")
    made = [installation.prefect(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {}}) for _ in range(2)]
    for run in made:
        assert set(installation.task_states(run["id"]).values()) == {"Cached"}
    first, second = sorted((installation.prefect(f"/flow_runs/{run['id']}") for run in made), key=lambda run: run["start_time"])
    assert first["end_time"] <= second["start_time"]


def test_a_value_given_on_the_command_line_changes_that_value_only(installation: Installation) -> None:
    answer = installation.run("prefect", "deployment", "run", "align/mine", "-p", 'online={"kl_coef": 0.3}', "--watch")
    assert answer.returncode == 0, answer.stdout[-3000:]
    folder = installation.newest_run()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    shown = installation.prefect("/deployments/name/align/mine")["parameters"]
    assert config == {**{name: shown[name] for name in config}, "online": {**shown["online"], "kl_coef": 0.3}}
    states = installation.task_states(installation.flow_run(folder.name)["id"])
    assert {name for name, state in states.items() if state != "Cached"} == {
        *("online", "convert_online", "evaluate_online", "compare")
    }


def test_a_deployment_refuses_a_preset_whose_values_it_does_not_have(installation: Installation) -> None:
    answer = installation.run("prefect", "deployment", "run", "align/mine", "-p", 'preset="quickstart"', "--watch")
    assert answer.returncode != 0
    assert "has the values of 'mine'" in " ".join(answer.stdout.split()), "whoever watches the run sees why it failed"
    failed = installation.prefect("/flow_runs/filter", {"flow_runs": {"state": {"name": {"any_": ["Failed"]}}}})
    assert [run for run in failed if "this deployment has the values of 'mine'" in run["state"]["message"]]


def test_a_schedule_makes_runs_and_they_start(installation: Installation) -> None:
    file = installation.home.root / "own.yaml"
    file.write_text(f"# Every minute.\nextends: tiny\nmodel: {{path: {installation.model}}}\nrun: {{name: nightly}}\n")
    given = (str(file), "--name", "nightly", "--cron", "* * * * *", "--timezone", "Europe/Berlin")
    answer = installation.run("flows.cli", "deploy", *given)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    deadline = time.monotonic() + 240
    while not (runs := list(installation.home.runs.glob("nightly-*/verdict.json"))):
        assert time.monotonic() < deadline, (installation.home.root / "logs" / "prefect.log").read_text()[-4000:]
        time.sleep(2)
    clear = ("clear", "align/nightly", "--accept-yes")
    for change in (clear, ("create", "align/nightly", "--interval", "3600")):
        done = installation.run("prefect", "deployment", "schedule", *change)
        assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 120
    asked = {"deployments": {"name": {"any_": ["nightly"]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    while len(coming := installation.prefect("/flow_runs/filter", asked | {"sort": "EXPECTED_START_TIME_ASC"})) < 2:
        assert time.monotonic() < deadline, "an interval is a schedule too"
        time.sleep(1)
    first, second = (datetime.fromisoformat(run["expected_start_time"]) for run in coming[:2])
    assert (second - first).total_seconds() == 3600
    assert installation.run("prefect", "deployment", "schedule", *clear).returncode == 0
    shown = httpx.post(f"{installation.environment['PREFECT_API_URL']}/flow_runs/filter", json={}).json()
    assert runs[0].parent.name in {run["name"] for run in shown}, "a run has one name, in its folder and in Prefect"


def test_a_wrong_parameter_is_refused_before_a_run_is_made(installation: Installation) -> None:
    answer = installation.run("prefect", "deployment", "run", "align/tiny", "-p", 'sft={"batch_sise": 3}')
    assert answer.returncode != 0
    assert "batch_sise" in answer.stdout + answer.stderr


def test_an_mlflow_that_was_killed_is_seen_and_started_again(installation: Installation) -> None:
    record = next(record for record in Records(installation.home.pids).all() if record.name == "mlflow")
    process = record.process
    assert process is not None
    assert [p for p in record.family if "job" in " ".join(p.cmdline())] == [], "nothing here asks for MLflow's job consumers"
    others = len(record.family) - 1
    process.kill()
    process.wait(10)
    assert f"ended; left {others} process" in " ".join(installation.run("flows.cli", "status").stdout.split())
    answer = installation.up()
    assert answer.returncode == 0, answer.stderr
    assert f"mlflow is gone; ending {others} process" in answer.stdout
    assert httpx.get(f"{installation.environment['MLFLOW_TRACKING_URI']}/health").status_code == 200


def test_down_ends_every_service_with_its_children(installation: Installation) -> None:
    records = Records(installation.home.pids).all()
    assert {record.name for record in records} == {"prefect", "mlflow", "ray", "worker"}
    families = [p for r in records if r.process for p in (r.process, *r.process.children(recursive=True))]
    answer = installation.run("flows.cli", "down", timeout_s=200)
    assert answer.returncode == 0, answer.stderr
    assert "ended 4 services" in answer.stdout
    _, alive = psutil.wait_procs(families, timeout=5)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
