"""Runs whose process is gone are closed by whoever looks next, and runs that live are left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from flows.running.dead_runs import close_dead_runs
from flows.running.run_folder import RunFolder, find_run
from flows.services.told_later import UntoldEnd, waiting_ends
from flows.settings.presets import resolve
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.run_state import RunState, state_of

pytestmark = pytest.mark.seconds

REPOSITORY = Path(__file__).resolve().parents[2]

# Begins a run, says so, and is killed.
RUN = """
import os, signal, sys
from pathlib import Path
from flows.running.run_folder import RunFolder
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.run_state import RunState
folder = RunFolder(Home.open(Path(sys.argv[1])), "killed")
folder.begin(flow_run=sys.argv[2], prefect_server="own", began=1.0)
folder.write_status(RunState(sys.argv[3]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


def _killed(home: Home, state: RunState) -> uuid.UUID:
    flow_run = uuid.uuid4()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", RUN, str(home.root), str(flow_run), state.value]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    return flow_run


@pytest.mark.parametrize(
    ("left_as", "closed_as"), [(RunState.running, RunState.crashed), (RunState.cancelling, RunState.cancelled)]
)
def test_a_killed_run_is_closed_with_the_word_that_prefect_is_told(home: Home, left_as: RunState, closed_as: RunState) -> None:
    flow_run = _killed(home, left_as)
    assert close_dead_runs(home) == ["killed"]
    status = json.loads((home.runs / "killed" / "status.json").read_text())
    assert status["status"] == closed_as.value
    assert "last seen at" in status["message"] and status["ended"] > 1.0
    (kept,) = [UntoldEnd.model_validate_json(path.read_text()) for path in waiting_ends(home)]
    assert (kept.flow_run, kept.server, kept.state, kept.message) == (flow_run, "own", closed_as, status["message"])
    assert close_dead_runs(home) == [], "once"


def test_runs_that_are_over_keep_their_word(home: Home) -> None:
    _killed(home, RunState.finished)
    assert close_dead_runs(home) == []
    assert state_of(home.runs / "killed") is RunState.finished


def test_a_living_run_is_left_alone(home: Home) -> None:
    folder = RunFolder(home, "mine")
    folder.begin(prefect_server=None)
    assert close_dead_runs(home) == []
    assert state_of(folder.path) is RunState.running


def test_a_run_that_no_server_knows_is_closed_and_nobody_told(home: Home) -> None:
    _killed(home, RunState.running)
    RunFolder(home, "killed").note(prefect_server=None)
    assert close_dead_runs(home) == ["killed"]
    assert waiting_ends(home) == []


def test_whoever_looks_at_the_services_closes_dead_runs(home: Home) -> None:
    _killed(home, RunState.running)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "ALIGNFLOW_HOME": str(home.root)}
    command = [sys.executable, "-m", "flows.cli", "status"]
    looked = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "run killed was gone without an end; it is closed as crashed" in looked.stderr
    assert state_of(home.runs / "killed") is RunState.crashed


def test_writing_into_an_old_run_does_not_make_it_the_latest(home: Home) -> None:
    config = resolve("tiny")
    for number, name in enumerate(("old", "new")):
        folder = RunFolder(home, name)
        folder.write_config(config)
        os.utime(folder.path / "config.yaml", (number, number))
        folder.write_status(RunState.finished)
    RunFolder(home, "old").note(report="rebuilt")
    (RunFolder(home, "old").path / "report.html").write_text("rebuilt")
    assert find_run(home, "latest").name == "new"
