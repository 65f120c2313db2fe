"""A worker says that it lives from its first moment to its last, whatever takes long."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from tasks.runtime.contract import liveness
from tasks.runtime.contract.liveness import HEARTBEAT_FILE
from tasks.runtime.contract.request import StageRequest
from tasks.runtime.execution.start import Runtime, run_stage
from tasks.runtime.worker import __main__ as worker
from tests.runtime.stages import JoinConfig


def test_publishing_a_large_artifact_does_not_keep_a_worker_from_its_heartbeat(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = asyncio.run(run_stage(StageRequest("tests.runtime.stages:SPARSE", "n", JoinConfig(), "run"), runtime))
    work = runtime.home.work / f"sparse-{outcome.ref.key}"
    attempt = work / "a1"
    for left in ("events.jsonl", "result.json"):
        (attempt / left).unlink()
    (work / "resume").mkdir()
    monkeypatch.setattr(liveness, "BEAT_EVERY_S", 0.01)
    beats: set[int] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            beats.add((attempt / HEARTBEAT_FILE).stat().st_mtime_ns)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        assert worker.main([str(attempt / "spec.json")]) == 0
    finally:
        done.set()
        watcher.join()
    worked_until = json.loads((attempt / "events.jsonl").read_text())["time"]
    while_publishing = [beat for beat in beats if beat / 1e9 > worked_until]
    assert len(while_publishing) > 5
    assert time.time() - worked_until < 60
