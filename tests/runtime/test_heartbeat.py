"""A worker says that it lives from its first moment to its last, whatever takes long."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.runtime.contract import liveness
from tasks.runtime.contract.liveness import HEARTBEAT_FILE, WORKER_FILE, announce, beating, is_alive, owner, retire, was_announced
from tasks.runtime.contract.request import StageOutcome, StageRequest
from tasks.runtime.execution.start import Runtime, run_stage
from tests.runtime.conftest import REPOSITORY
from tests.runtime.stages import JoinConfig

pytestmark = pytest.mark.seconds

# The worker, with a heart that beats as often as a test can wait for.
WORKER = """
import sys
from tasks.runtime.contract import liveness
from tasks.runtime.worker import __main__ as worker, watch
liveness.BEAT_EVERY_S = watch._BEAT_S = watch._TICK_S = 0.01
sys.exit(worker.main(sys.argv[1:]))
"""


def _run(runtime: Runtime, stage: str, made: StageOutcome | None = None) -> StageOutcome:
    inputs = {"big": made.ref} if made else {}
    return asyncio.run(
        run_stage(StageRequest(f"tests.runtime.stages:{stage}", stage, JoinConfig(), "run", inputs=inputs), runtime)
    )


@pytest.mark.parametrize("moment", ["publishing", "reading its input"])
def test_a_large_artifact_does_not_keep_a_worker_from_its_heartbeat(moment: str, runtime: Runtime) -> None:
    """A quarter of a gigabyte is hashed; while it is, the heartbeat's file is touched."""
    outcome = made = _run(runtime, "SPARSE")
    if moment == "reading its input":
        outcome = _run(runtime, "AFTER_SPARSE", made)
        shutil.rmtree(runtime.store.root / ".hashes")
    work = runtime.home.work / f"{moment.startswith('reading') * 'after_'}sparse-{outcome.ref.key}"
    events = work / "a1" / "events.jsonl"
    for left in (events, work / "a1" / "result.json"):
        left.unlink()
    (work / "resume").mkdir()
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(work / "a1" / "spec.json")], cwd=REPOSITORY)
    beats: dict[str, set[int]] = {"reading its input": set(), "publishing": set()}
    while worker.poll() is None:
        now = "publishing" if events.exists() else "reading its input"
        beats[now].add((work / "a1" / HEARTBEAT_FILE).stat().st_mtime_ns)
        time.sleep(0.002)
    assert worker.returncode == 0
    assert len(beats[moment]) > 5


def test_a_process_is_alive_from_its_announcement_until_it_retires(tmp_path: Path) -> None:
    assert (is_alive(tmp_path), was_announced(tmp_path), owner(tmp_path)) == (False, False, None)
    announce(tmp_path)
    assert (is_alive(tmp_path), was_announced(tmp_path), owner(tmp_path)) == (True, True, (socket.gethostname(), os.getpid()))
    retire(tmp_path)
    assert not is_alive(tmp_path)


def test_a_process_of_another_machine_is_alive_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    announce(tmp_path)
    record = json.loads((tmp_path / WORKER_FILE).read_text())
    (tmp_path / WORKER_FILE).write_text(json.dumps({**record, "host": "another"}))
    assert is_alive(tmp_path)
    late = time.time() - liveness.HEARTBEAT_LIMIT_S - 1
    os.utime(tmp_path / HEARTBEAT_FILE, (late, late))
    assert not is_alive(tmp_path)
    (tmp_path / HEARTBEAT_FILE).unlink()
    assert not is_alive(tmp_path)


def test_another_process_under_the_same_id_is_another_one(tmp_path: Path) -> None:
    announce(tmp_path)
    record = json.loads((tmp_path / WORKER_FILE).read_text())
    (tmp_path / WORKER_FILE).write_text(json.dumps({**record, "created": record["created"] - 60}))
    assert not is_alive(tmp_path)


def test_a_process_that_has_ended_is_dead_before_anybody_has_waited_for_it(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        announce(tmp_path, child.pid)
        assert is_alive(tmp_path)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(tmp_path)


def test_no_heart_beats_after_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, ended = threading.Event(), []

    def slow_beat(folder: Path) -> None:
        began.set()
        time.sleep(0.2)
        ended.append(folder)
        raise OSError("away for a moment")

    monkeypatch.setattr(liveness, "beat", slow_beat)
    monkeypatch.setattr(liveness, "BEAT_EVERY_S", 0.01)
    with beating(tmp_path):
        assert began.wait(10)
    beats = len(ended)
    assert beats > 0
    time.sleep(0.3)
    assert len(ended) == beats
