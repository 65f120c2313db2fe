"""A worker says that it lives from its first moment to its last, whatever takes long."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time

import pytest

from tasks.runtime.contract.liveness import HEARTBEAT_FILE
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
