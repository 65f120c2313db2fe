"""The thread beside a stage: what it bears, and what it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.runtime.contract.liveness import HEARTBEAT_FILE
from tasks.runtime.contract.spec import EVENTS_FILE, Producer, Spec
from tasks.runtime.worker.watch import StageWatch
from tests.runtime.conftest import REPOSITORY

pytestmark = pytest.mark.timeout(60)


def _spec(work: Path, stall_after_s: float) -> Spec:
    (work / "a1").mkdir(parents=True)
    places = dict.fromkeys(("store", "work", "output", "resume"), work)
    return Spec(
        stage="count",
        key="k",
        kind="numbers",
        description={},
        config={},
        inputs={},
        seed=0,
        attempt=1,
        first_attempt=1,
        token="t",
        producer=Producer(run="run", node="node", stage="count", attempt=1),
        stall_after_s=stall_after_s,
        **places,
    )


def test_events_that_cannot_be_read_for_a_while_end_neither_the_watch_nor_the_stage(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = _spec(tmp_path, stall_after_s=60.0)
    events = spec.folder / EVENTS_FILE
    events.mkdir()  # what is read is no file: an OSError each time
    with StageWatch(spec):
        deadline = time.monotonic() + 20
        while not (spec.folder / HEARTBEAT_FILE).exists():
            assert time.monotonic() < deadline, "the heart has stopped"
            time.sleep(0.05)
        events.rmdir()
        events.write_text('{"type": "warning", "message": "back again"}\n')
    assert "back again" in capfd.readouterr().out


STALLS = """
import sys, time
from pathlib import Path
from tests.runtime.test_worker_watch import _spec
from tasks.runtime.worker.watch import StageWatch
with StageWatch(_spec(Path(sys.argv[1]), stall_after_s=1.0)) as watch:
    if sys.argv[2] == "publishing":
        watch.publishing()
    time.sleep(4)
"""


@pytest.mark.parametrize(("phase", "code"), [("working", 1), ("publishing", 0)])
def test_silence_ends_a_stage_that_works_and_not_one_that_publishes(tmp_path: Path, phase: str, code: int) -> None:
    command = [sys.executable, "-c", STALLS, str(tmp_path / "work"), phase]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == code, ended.stderr
    assert ("no event for 1 s" in ended.stderr) == (code == 1)
