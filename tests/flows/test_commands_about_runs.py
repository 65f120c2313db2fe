"""`alignflow logs` and `cancel`: what a stage prints while it prints it, and a run that is ended from another terminal."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_processing.errors import ConfigError
from flows.commands.runs import cancel_run, show_log
from flows.running.run_folder import RunFolder
from flows.settings.config import PipelineConfig
from tasks.runtime.contract.config import RuntimeConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.liveness import WORKER_FILE, announce
from tasks.runtime.contract.request import StageRequest
from tasks.runtime.contract.run_state import RunState
from tasks.runtime.contract.spec import write_json
from tasks.runtime.execution.start import Runtime, run_stage
from tasks.runtime.execution.subprocess_executor import SubprocessExecutor
from tests.runtime.stages import CountConfig

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path / "home"))
    return Home.open()


def _running(home: Home, name: str) -> RunFolder:
    folder = RunFolder(home, name)
    folder.write_config(PipelineConfig())
    folder.begin(began=time.time())
    return folder


def test_a_log_is_followed_to_the_end_of_its_stage(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    _running(home, "nightly-1")
    settings = RuntimeConfig(poll_interval_s=0.05, min_free_disk_gib=0.0)
    request = StageRequest("tests.runtime.stages:COUNT", "counted", CountConfig(to=4, step_s=0.4, fail_code=77), "nightly-1")
    stage = threading.Thread(
        target=lambda: asyncio.run(run_stage(request, Runtime(home, SubprocessExecutor(), settings))), daemon=True
    )
    stage.start()
    while not (home.runs / "nightly-1" / "nodes" / "counted.json").exists():
        time.sleep(0.05)
    show_log("latest", "counted", follow=True)
    stage.join(30)
    said = capsys.readouterr().out
    assert "counted, attempt 2" in said, "the first attempt fails, and the next is followed"
    assert [line for line in said.splitlines() if line.startswith("[")] == [f"[{n}/4] counted {n}" for n in range(1, 5)]
    show_log("nightly", "count", follow=False)
    assert "[4/4] counted 4" in capsys.readouterr().out


def test_a_run_of_another_machine_is_cancelled_there(home: Home) -> None:
    folder = _running(home, "nightly-1")
    write_json(folder.process_folder / WORKER_FILE, {"pid": 1234, "created": 1.0, "host": "node7"})
    with pytest.raises(ConfigError, match=r"runs on node7 \(process 1234\), and no Prefect worker runs it; cancel it there"):
        cancel_run("nightly")
    assert folder.read_status()["status"] == "running"


def test_a_run_that_is_over_stays_as_it_ended(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _running(home, "nightly-1")
    folder.write_status(RunState.finished, ended=time.time())
    cancel_run("latest")
    assert "run nightly-1 is over: finished" in capsys.readouterr().out


def test_only_the_process_that_announced_itself_is_ended(home: Home) -> None:
    """Its id may be another's by now."""
    folder = _running(home, "nightly-1")
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        announce(folder.process_folder, bystander.pid)
        record = json.loads((folder.process_folder / WORKER_FILE).read_text())
        write_json(folder.process_folder / WORKER_FILE, {**record, "created": record["created"] - 100})
        assert record["host"] == socket.gethostname()
        cancel_run("latest")
        assert bystander.poll() is None
        assert folder.read_status()["status"] == "crashed"
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_is_cancelled_from_another_terminal(home: Home, tmp_path: Path) -> None:
    kept = {
        k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "PREFECT_HOME")
    }
    environment = {**kept, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE)])}
    with (tmp_path / "out").open("w") as output:
        run = subprocess.Popen(
            [sys.executable, str(HERE / "toy_flow.py"), "w=waits"], env=environment, stdout=output, stderr=output
        )
    try:
        _wait_for("[0/1] waiting", environment)
        cancelled = subprocess.run(
            [sys.executable, "-m", "flows.cli", "cancel", "latest"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert cancelled.returncode == 0, cancelled.stderr
        assert "is cancelled; the same command goes on from there" in cancelled.stdout
        assert run.wait(60) == 130
    finally:
        run.kill()
        run.wait()
    [folder] = home.runs.iterdir()
    assert json.loads((folder / "status.json").read_text())["status"] == "cancelled"


def _wait_for(line: str, environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 120
    said = ""
    while line not in said:
        assert time.monotonic() < deadline, said
        answer = subprocess.run(
            [sys.executable, "-m", "flows.cli", "logs", "latest", "w"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        said = answer.stdout + answer.stderr
        time.sleep(0.5)
