"""Stages as jobs of a real Ray head."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.runtime.contract.config import RuntimeConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.liveness import is_alive, worker_process
from tasks.runtime.contract.request import StageOutcome, StageRequest
from tasks.runtime.execution.executor import DuplicateJobError, ExecutorUnreachableError, Job, JobStatus
from tasks.runtime.execution.ray_jobs import RayJobsExecutor
from tasks.runtime.execution.start import Runtime, run_stage
from tests.runtime.conftest import REPOSITORY, Heard, cancel_after
from tests.runtime.ray_head import RayHead

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
Requests = Callable[..., StageRequest]


@pytest.fixture
def on_ray(home: Home, settings: RuntimeConfig, ray_head: RayHead) -> Runtime:
    return Runtime(home, RayJobsExecutor(ray_head.address), settings)


def _start(request: StageRequest, runtime: Runtime, heard: Heard | None = None) -> StageOutcome:
    return asyncio.run(run_stage(request, runtime, heard))


def test_a_job_whose_worker_is_killed_is_resumed_and_its_log_followed(
    on_ray: Runtime, count_request: Requests, heard: Heard
) -> None:
    outcome = _start(count_request(kill_at=2, step_s=0.5, label="ray killed"), on_ray, heard)
    assert (outcome.attempt, heard.attempts) == (2, [(1, False), (2, False)])
    assert "exit code 137" in heard.warnings[0]
    counted = json.loads((on_ray.store.folder(outcome.ref.kind, outcome.ref.key) / "counted.json").read_text())
    assert counted == [[1, 1], [2, 2], [3, 2]]
    assert [line for line in heard.log if "counted" in line] == ["[1/3] counted 1", "[2/3] counted 2", "[3/3] counted 3"]
    assert _start(count_request(label="ray killed", run="later"), on_ray).cached


def test_the_error_of_a_stage_comes_back_through_ray(on_ray: Runtime, count_request: Requests) -> None:
    with pytest.raises(Exception, match="asked to fail with 12") as caught:
        _start(count_request(fail_code=12, label="ray fails"), on_ray)
    assert type(caught.value).__name__ == "DivergedError"


def test_cancelling_stops_the_job_with_a_checkpoint_saved(on_ray: Runtime, count_request: Requests, heard: Heard) -> None:
    request = count_request(to=1000, step_s=0.2, label="ray cancelled")

    asyncio.run(cancel_after(4, request, on_ray, heard))
    assert heard.folder is not None
    assert worker_process(heard.folder) is None
    assert json.loads((heard.folder / "error.json").read_text())["exit_code"] == 14
    assert on_ray.executor.state(_job(heard.folder)).status is JobStatus.stopped


def _job(folder: Path) -> Job:
    attempt = json.loads((folder.parent / "attempt.json").read_text())
    return Job(id=attempt["job_id"], spec=folder / "spec.json", stop_grace_s=5.0)


SUBMITTER = """
import asyncio, sys
from pathlib import Path
from tasks.runtime.contract.config import RuntimeConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.execution.ray_jobs import RayJobsExecutor
from tasks.runtime.contract.request import StageRequest
from tasks.runtime.execution.start import Runtime, run_stage
from tests.runtime.stages import CountConfig
home = Home.open(Path(sys.argv[1]))
request = StageRequest("tests.runtime.stages:COUNT", "node", CountConfig(to=20, step_s=0.3, label="ray attach"), "killed_run")
asyncio.run(run_stage(request, Runtime(home, RayJobsExecutor(sys.argv[2]), RuntimeConfig(min_free_disk_gib=0.0))))
"""


def test_a_job_outlives_its_flow_process_and_is_attached_to(
    on_ray: Runtime, home: Home, ray_head: RayHead, count_request: Requests, heard: Heard
) -> None:
    submitter = subprocess.Popen(
        [sys.executable, "-c", SUBMITTER, str(home.root), ray_head.address],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    deadline = time.monotonic() + 30
    while not any(is_alive(folder.parent) for folder in home.work.glob("*/a1/worker.json")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    submitter.send_signal(signal.SIGKILL)
    submitter.wait()
    outcome = _start(count_request(to=20, step_s=0.3, label="ray attach"), on_ray, heard)
    assert heard.attempts == [(1, True)]
    assert (outcome.attempt, outcome.producer) == (1, "killed_run/node")


def test_ids_that_the_cluster_has_seen_in_another_home_are_skipped(
    on_ray: Runtime, tmp_path: Path, count_request: Requests
) -> None:
    first = _start(count_request(label="two homes"), on_ray)
    other = Runtime(Home.open(tmp_path / "other"), on_ray.executor, on_ray.settings)
    second = _start(count_request(label="two homes"), other)
    assert (first.attempt, second.attempt) == (1, 2)
    with pytest.raises(DuplicateJobError):
        on_ray.executor.submit(_job(on_ray.home.work / f"count-{first.ref.key}" / "a1"))


def test_an_unknown_job_is_unknown_and_a_missing_head_is_unreachable(ray_head: RayHead, tmp_path: Path) -> None:
    job = Job(id="never-submitted", spec=tmp_path / "spec.json", stop_grace_s=1.0)
    assert RayJobsExecutor(ray_head.address).state(job).status is JobStatus.unknown
    with pytest.raises(ExecutorUnreachableError, match=r"127\.0\.0\.1:1"):
        RayJobsExecutor("http://127.0.0.1:1").state(job)


def test_nothing_secret_stands_in_a_job(
    on_ray: Runtime, ray_head: RayHead, count_request: Requests, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests

    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    _start(count_request(label="secret"), on_ray, heard)
    assert heard.folder is not None
    assert "hf_very_secret" not in requests.get(f"{ray_head.address}/api/jobs/", timeout=10).text
    assert "hf_very_secret" not in (heard.folder / "spec.json").read_text()


def test_a_dead_control_service_is_noticed_within_seconds(home: Home, settings: RuntimeConfig, tmp_path: Path) -> None:
    head = RayHead()
    try:
        head.wait_until_ready()
        executor = RayJobsExecutor(head.address)
        job = Job(id="asked-for", spec=tmp_path / "spec.json", stop_grace_s=1.0)
        assert executor.state(job).status is JobStatus.unknown
        head.component("gcs_server").kill()
        began = time.monotonic()
        with pytest.raises(ExecutorUnreachableError):
            executor.state(job)
        assert time.monotonic() - began < 20
    finally:
        head.close()
