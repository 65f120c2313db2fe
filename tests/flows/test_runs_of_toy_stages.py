"""The real flow, Prefect server, workers and tracker, around stages that compute nothing: how runs end, and what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.commands.why import differences
from flows.graph.history import History
from flows.services import environment
from flows.services.environment import changed_environment
from flows.services.prefect_server import prefect_for_run
from flows.services.processes import Records
from flows.services.shown_later import show_waiting
from tasks.runtime.contract.home import Home

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
DIAMOND = ("base_model=writes", "left=writes:base_model", "right=writes:base_model,left")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.open(tmp_path_factory.mktemp("toy"))


def _command(*arguments: str) -> list[str]:
    return [sys.executable, str(HERE / "toy_flow.py"), *arguments]


def _environment(home: Home) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "PREFECT_HOME")
    }
    return {**kept, "ALIGNFLOW_HOME": str(home.root), "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE)])}


def _run(home: Home, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**_environment(home), **variables}
    return subprocess.run(_command(*arguments), env=environment, capture_output=True, text=True, timeout=240, check=False)


def _newest(home: Home) -> tuple[str, dict[str, Any]]:
    folder = max(home.runs.iterdir(), key=lambda f: f.stat().st_mtime)
    return folder.name, json.loads((folder / "status.json").read_text())


def _tracked(home: Home, run: str) -> dict[str, str]:
    """Name -> status of the tracker's runs of a flow run."""
    client = MlflowClient(f"sqlite:///{home.mlflow / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    parent = next(r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == run)
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return {run: parent.info.status, **{str(r.info.run_name): r.info.status for r in children}}


def _wait_until_delivered(home: Home, run: str) -> None:
    """A process of its own sends what a run without work has to say."""
    deadline = time.monotonic() + 60
    while not json.loads((home.runs / run / "tracking" / "progress.json").read_text())["complete"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _flow_run(name: str) -> tuple[Any, dict[str, Any]]:
    """A flow run of the Prefect server that this process talks to, and its task runs by name."""
    wanted = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
    with get_client(sync_client=True) as client:
        (found,) = client.read_flow_runs(flow_run_filter=wanted)
        return found, {task_run.name: task_run for task_run in client.read_task_runs(flow_run_filter=wanted)}


def test_a_second_run_takes_everything_from_the_store_and_leaves_no_process(home: Home) -> None:
    first = _run(home, *DIAMOND)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("done in") == 3
    second = _run(home, *DIAMOND)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count(" cached (") == 3
    assert "done in" not in second.stdout
    run, status = _newest(home)
    assert status["status"] == "finished"
    _wait_until_delivered(home, run)
    assert _tracked(home, run) == {run: "FINISHED", "base_model": "FINISHED", "left": "FINISHED", "right": "FINISHED"}
    timings = json.loads((home.runs / run / "timings.json").read_text())
    assert timings["work_s"] == 0
    assert set(timings["nodes"]) == {"base_model", "left", "right"}
    assert Records(home.pids).all() == []


def test_own_servers_and_ray_are_reached_where_a_proxy_is_set_and_what_mlflow_does_not_take_is_no_failure(home: Home) -> None:
    gone = "http://127.0.0.1:9"
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), gone)
    ran = _run(
        home, "base_model=writes", "proxied=writes:base_model", "--ray", "--force=proxied", **proxies, no_proxy="", NO_PROXY=""
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("done in") >= 1


def test_a_run_that_needed_no_server_is_shown_when_there_is_one(home: Home) -> None:
    assert _run(home, *DIAMOND).returncode == 0  # Prefect's database is there, and everything is cached
    assert _run(home, *DIAMOND).stdout.count(" cached (") == 3
    run, _ = _newest(home)
    with changed_environment():
        environment.enter(home)
        with prefect_for_run(home) as wait_for_prefect, temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}):
            wait_for_prefect()
            show_waiting(home)
            shown, tasks = _flow_run(run)
    assert shown.state_name == "Completed"
    assert "everything was cached" in str(shown.state.message)
    assert {t.state_name for t in tasks.values()} == {"Cached"}
    assert "made by tiny-" in str(tasks["left"].state.message)
    assert {i.id for i in tasks["right"].task_inputs["upstream"]} == {tasks["base_model"].id, tasks["left"].id}
    assert list((home.prefect / "unshown").glob("*.json")) == []


def test_a_failing_stage_is_explained_and_does_not_keep_back_its_siblings(home: Home) -> None:
    answer = _run(home, "base_model=writes", "bad=diverges:base_model", "after=writes:bad", "beside=writes:base_model,base_model")
    assert answer.returncode == 12
    assert "stage 'bad' failed: training diverged (exit code 12)" in answer.stderr
    assert "loss is nan at step 3" in answer.stderr
    assert "Not started, because they need it: after" in answer.stderr
    assert "Traceback" not in answer.stderr
    run, status = _newest(home)
    assert status["status"] == "failed"
    assert {name: state for name, state in _tracked(home, run).items() if name != run} == {
        "base_model": "FINISHED",
        "bad": "FAILED",
        "beside": "FINISHED",
    }
    assert _tracked(home, run)[run] == "FAILED"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_cancelled_everywhere_and_leaves_no_process(home: Home, number: signal.Signals) -> None:
    process, output = _waiting_run(home)
    process.send_signal(number)
    _wait_until(lambda: "cancelling: " in output.read_text(), limit_s=5)
    assert process.wait(timeout=180) == 130
    said = output.read_text()
    assert said.index("cancelling: what runs gets up to 2 s") < said.index("error: cancelled; ")
    run, status = _newest(home)
    assert status["status"] == "cancelled"
    assert _tracked(home, run) == {run: "KILLED", "base_model": "FINISHED", "w": "KILLED"}
    assert _tag(home, run) == "cancelled"
    workers = [p for p in psutil.process_iter(["cmdline"]) if str(home.root) in " ".join(p.info["cmdline"] or [])]
    assert workers == []
    assert Records(home.pids).all() == []
    shown, tasks = _in_prefect(home, run)
    assert (shown, tasks) == ("Cancelled", {"base_model": "Cached", "w": "Cancelled"})


def test_a_run_that_is_interrupted_while_its_servers_start_says_so_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    home, output = Home.open(tmp_path / "home"), tmp_path / "output"
    with output.open("w") as stream:
        process = subprocess.Popen(
            _command("base_model=writes"),
            env=_environment(home),
            stdout=stream,
            stderr=stream,
            preexec_fn=_hears_interrupts,  # noqa: PLW1509
        )
    _wait_until(lambda: bool(Records(home.pids).all()), limit_s=60)
    process.send_signal(signal.SIGINT)
    _wait_until(lambda: "cancelling: what was started" in output.read_text(), limit_s=5)
    assert process.wait(timeout=60) == 130
    assert Records(home.pids).all() == []
    assert list(home.runs.iterdir()) == [], "it had not begun"


def _wait_until(happens: Callable[[], bool], limit_s: float) -> None:
    ends = time.monotonic() + limit_s
    while not happens():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_killed_run_is_crashed_everywhere_soon_after_the_next_look(home: Home) -> None:
    process, _ = _waiting_run(home)
    process.kill()
    process.wait()
    look = [sys.executable, "-m", "flows.cli", "status"]
    looked = subprocess.run(look, env=_environment(home), capture_output=True, text=True, timeout=60, check=True)
    run, status = _newest(home)
    assert status["status"] == "crashed"
    assert "served a run that is gone" in looked.stdout
    _wait_until_delivered(home, run)
    assert _tracked(home, run) == {run: "KILLED", "base_model": "FINISHED", "w": "KILLED"}
    assert _tag(home, run) == "crashed"
    subprocess.run([sys.executable, "-m", "flows.cli", "down"], env=_environment(home), timeout=60, check=True)
    assert _in_prefect(home, run) == ("Crashed", {"base_model": "Cached", "w": "Crashed"})
    for worker in (p for p in psutil.process_iter(["cmdline"]) if str(home.root) in " ".join(p.info["cmdline"] or [])):
        worker.kill()  # it lives on, for the next run to find


def test_a_prefect_server_that_dies_is_started_again_and_knows_how_everything_ended(home: Home, tmp_path: Path) -> None:
    process, output = _waiting_run(home, "waits_for_key", TOY_KEY=str(tmp_path / "key"))
    (server,) = [record.process for record in Records(home.pids).all() if record.name.startswith("prefect-")]
    assert server
    server.kill()
    (tmp_path / "key").touch()
    assert process.wait(timeout=240) == 0, output.read_text()
    assert "the Prefect server of this run died; it is started again" in output.read_text()
    assert "Traceback" not in output.read_text() and "Error" not in output.read_text()
    run, status = _newest(home)
    assert status["status"] == "finished"
    shown, tasks = _in_prefect(home, run)
    assert (shown, tasks["w"]) == ("Completed", "Completed")
    assert Records(home.pids).all() == []


def _waiting_run(home: Home, stage: str = "waits", **variables: str) -> tuple[subprocess.Popen[bytes], Path]:
    """A run that waits in its second stage, and what it prints."""
    output = home.root / f"waiting-{time.monotonic_ns()}.txt"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            _command("base_model=writes", f"w={stage}:base_model"),
            env={**_environment(home), **variables},
            stdout=stream,
            stderr=stream,
            preexec_fn=_hears_interrupts,  # noqa: PLW1509
        )
    deadline = time.monotonic() + 120
    while "0/1 waiting" not in output.read_text():
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)
    return process, output


def _hears_interrupts() -> None:
    """A shell has what it starts in the background ignore SIGINT, and that is inherited: the tests may run there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _tag(home: Home, run: str) -> str:
    """How the tracker says that the flow run ended, in our word."""
    client = MlflowClient(f"sqlite:///{home.mlflow / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], f"run_name = '{run}'")
    return str(parent.data.tags["alignflow.state"])


def _in_prefect(home: Home, run: str) -> tuple[str, dict[str, str]]:
    """Names of the states that a server shows a flow run and its tasks in."""
    with changed_environment():
        environment.enter(home)
        with prefect_for_run(home) as wait_for_prefect, temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}):
            wait_for_prefect()
            show_waiting(home)
            shown, tasks = _flow_run(run)
    return shown.state_name, {name: str(task.state_name) for name, task in tasks.items()}


def test_why_names_the_field_that_made_a_stage_run_again(home: Home) -> None:
    run, _ = next(History(home).of("right"))
    assert "cached, made by" in differences(home, run, "right")[0]
    records = sorted(History(home).of("base_model"))
    assert "no earlier run" in differences(home, records[0][0], "base_model")[0]
