"""Between a flow and its worker processes: what runs them, who waits for them, and what is borne meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tasks.runtime.contract.config import RuntimeConfig
from tasks.runtime.contract.failures import StageFailedError
from tasks.runtime.contract.liveness import announce, retire, worker_process
from tasks.runtime.contract.spec import Failure, write_record
from tasks.runtime.execution import follow, subprocess_executor
from tasks.runtime.execution.event_tail import EventTail, LineTail
from tasks.runtime.execution.executor import (
    DuplicateJobError,
    ExecutorUnreachableError,
    Job,
    JobState,
    JobStatus,
    worker_environment,
)
from tasks.runtime.execution.follow import Follow, Patience, stop
from tasks.runtime.execution.followers import Follower, is_stopping
from tasks.runtime.execution.subprocess_executor import SubprocessExecutor
from tests.runtime.conftest import Heard

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "a1").mkdir()
    return Job("count-k-a1", tmp_path / "a1" / "spec.json", stop_grace_s=0.5)


Work = Callable[[str], None]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Sets the code that workers run in place of a stage."""

    def of(code: str) -> None:
        monkeypatch.setattr(subprocess_executor, "worker_command", lambda job: [sys.executable, "-c", code])

    return of


def _ended(executor: SubprocessExecutor, job: Job) -> JobState:
    deadline = time.monotonic() + 20
    while not (state := executor.state(job)).status.is_terminal:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return state


def _wait_for(path: Path) -> str:
    deadline = time.monotonic() + 20
    while not path.is_file() or not path.read_text():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return path.read_text()


def test_lines_are_handed_out_once_each_and_a_torn_one_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    tail = LineTail(path)
    assert tail.read() == []
    with path.open("ab", buffering=0) as stream:
        stream.write(b"first\n\nthi")
        assert tail.read() == [b"first", b""]
        assert tail.read() == []
        stream.write(b"rd\n")
        assert tail.read() == [b"third"]


def test_what_is_no_event_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"type": "metrics"}\n{"type": "pro\n3\nnull\n{"type": "summary"}\n')
    assert [event["type"] for event in EventTail(path).read()] == ["metrics", "summary"]


def test_a_worker_gets_settings_of_libraries_and_no_secrets(job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = {
        *("ALIGNFLOW_CACHE_GIB", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_REGION"),
        *("DS_ACCELERATOR", "HF_HOME", "HF_HUB_OFFLINE", "NO_PROXY", "no_proxy", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"),
        *("TOKENIZERS_PARALLELISM", "TORCH_EXTENSIONS_DIR", "TRANSFORMERS_OFFLINE"),
    }
    for name in (*settings, "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, f"my {name}")
    monkeypatch.setenv("PATH", "/somewhere/bin")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "mine", str(job.code)]))
    monkeypatch.chdir(tmp_path)
    given = worker_environment(job)
    assert {name: given.pop(name) for name in settings} == {name: f"my {name}" for name in settings}
    assert given == {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}/somewhere/bin",
        "PYTHONPATH": os.pathsep.join([str(job.code), str(tmp_path / "mine"), str(tmp_path)]),
    }


def test_a_worker_has_one_thread_unless_somebody_says_otherwise(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert worker_environment(job)["OMP_NUM_THREADS"] == "1"
    own = Job(job.id, job.spec, job.stop_grace_s, environment={"OMP_NUM_THREADS": "4"})
    assert worker_environment(own)["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("print('out')", JobState(JobStatus.succeeded, 0)),
        ("raise SystemExit(3)", JobState(JobStatus.failed, 3)),
        ("import os; os.kill(os.getpid(), 9)", JobState(JobStatus.failed, 137)),
    ],
)
def test_a_job_ends_with_the_exit_code_of_its_worker(job: Job, work: Work, code: str, state: JobState) -> None:
    work(code)
    executor = SubprocessExecutor()
    assert executor.state(job) == JobState(JobStatus.unknown)
    executor.submit(job)
    assert _ended(executor, job) == state


def test_all_that_a_worker_prints_is_in_its_log_and_its_variables_are_set(job: Job, work: Work) -> None:
    work("import os, sys; print(os.environ['SAID'], flush=True); print('and this', file=sys.stderr)")
    executor = SubprocessExecutor()
    executor.submit(Job(job.id, job.spec, job.stop_grace_s, environment={"SAID": "this"}))
    _ended(executor, job)
    assert (job.folder / "log.txt").read_text() == "this\nand this\n"


def test_an_id_is_used_once(job: Job, work: Work) -> None:
    work("pass")
    SubprocessExecutor().submit(job)
    with pytest.raises(DuplicateJobError, match="count-k-a1 was submitted before"):
        SubprocessExecutor().submit(job)


def test_a_worker_that_is_asked_to_stop_ends_and_counts_as_stopped(job: Job, work: Work) -> None:
    work("import time; time.sleep(60)")
    executor = SubprocessExecutor()
    executor.submit(job)
    process = worker_process(job.folder)
    assert process is not None
    assert os.getsid(process.pid) == process.pid, "a signal for the flow's terminal does not reach it"
    assert executor.state(job) == JobState(JobStatus.running)
    executor.stop(job)
    assert _ended(executor, job) == JobState(JobStatus.stopped, 143)
    executor.stop(job)  # nothing is left to stop


def test_a_worker_that_does_not_stop_is_killed_after_its_grace(job: Job, work: Work) -> None:
    ready = job.folder / "ready"
    work(f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w').write('x'); time.sleep(60)")
    executor = SubprocessExecutor()
    executor.submit(job)
    _wait_for(ready)
    asked_s = time.monotonic()
    executor.stop(job)
    assert all(thread.daemon for thread in threading.enumerate() if isinstance(thread, threading.Timer)), "a flow may end first"
    assert _ended(executor, job) == JobState(JobStatus.stopped, 137)
    assert time.monotonic() - asked_s >= job.stop_grace_s


def test_what_a_worker_leaves_behind_ends_with_it(job: Job, work: Work) -> None:
    left = job.folder / "left"
    work(f"import subprocess; open({str(left)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))")
    executor = SubprocessExecutor()
    executor.submit(job)
    _ended(executor, job)
    deadline = time.monotonic() + 5
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(int(left.read_text())).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "it lives"
            time.sleep(0.02)


def test_a_job_of_another_flow_process_is_known_by_what_its_worker_left(job: Job, work: Work) -> None:
    work("import time; time.sleep(60)")
    submitter, other = SubprocessExecutor(), SubprocessExecutor()
    submitter.submit(job)
    assert other.state(job) == JobState(JobStatus.running)
    submitter.stop(job)
    _ended(submitter, job)
    assert other.state(job) == JobState(JobStatus.failed)
    write_record(job.folder / "error.json", Failure(exit_code=14, error="PreemptedError", message="asked to stop"))
    assert other.state(job) == JobState(JobStatus.failed, 14)


def test_who_has_submitted_an_attempt_answers_for_the_worker_that_has_yet_to_begin(tmp_path: Path) -> None:
    submitter, other = Follower(tmp_path, submitted=True), Follower(tmp_path)
    other.join()
    assert not other.may_begin()
    submitter.join()
    assert other.may_begin()
    assert not submitter.may_begin(), "its own executor knows"
    announce(tmp_path)
    assert not other.may_begin(), "it has begun"
    retire(tmp_path)
    assert other.may_begin()
    submitter.end()
    assert not other.may_begin()


def test_the_last_who_leaves_marks_the_attempt_and_who_sees_its_end_does_not(tmp_path: Path) -> None:
    first, second, third = (Follower(tmp_path) for _ in range(3))
    for follower in (first, second, third):
        follower.join()
    assert not first.leave()
    second.end()
    assert not is_stopping(tmp_path)
    assert third.leave()
    assert is_stopping(tmp_path)


def test_who_waits_leaves_a_folder_that_is_as_open_as_the_attempts(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)
    before = os.umask(0o077)
    try:
        Follower(tmp_path).join()
    finally:
        os.umask(before)
    [own] = (tmp_path / "followers").iterdir()
    assert {stat.S_IMODE(place.stat().st_mode) for place in (own, own.parent)} == {0o2775}


class Scripted:
    """An executor that answers what it is told to, one answer a call and the last one for ever."""

    name = "scripted"

    def __init__(self, *answers: JobStatus | Exception) -> None:
        self.answers = list(answers)
        self.stops = 0

    def submit(self, job: Job) -> None:
        raise AssertionError("nothing is submitted here")

    def state(self, job: Job) -> JobState:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return JobState(answer)

    def stop(self, job: Job) -> None:
        self.stops += 1


def _follow(job: Job, executor: Scripted, heard: Heard, start_timeout_s: float | None = None) -> JobState:
    settings = RuntimeConfig(poll_interval_s=0.05, start_timeout_s=start_timeout_s)
    follower = Follower(job.folder, submitted=True)
    follower.join()
    return asyncio.run(Follow(job, executor, settings, heard, follower).until_end())


def test_a_job_that_does_not_start_in_time_is_given_up(job: Job, heard: Heard) -> None:
    with pytest.raises(StageFailedError, match=r"count-k-a1 is pending: .*; given up after start_timeout_s=0.2 s"):
        _follow(job, Scripted(JobStatus.pending), heard, start_timeout_s=0.2)
    lasting = Scripted(JobStatus.pending, *[JobStatus.running] * 8, JobStatus.succeeded)
    assert _follow(job, lasting, heard, start_timeout_s=0.2).status is JobStatus.succeeded


def test_a_job_that_waits_for_room_says_so_less_and_less_often(job: Job, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_SAY_PENDING_AFTER_S", 0.1)
    _follow(job, Scripted(*[JobStatus.pending] * 20, JobStatus.failed), heard)
    assert 2 <= len(heard.warnings) <= 5
    assert all("is pending: the cluster lacks room" in warning for warning in heard.warnings)
    heard.warnings.clear()
    monkeypatch.setattr(follow, "_SAY_PENDING_AFTER_S", 30.0)
    _follow(job, Scripted(*[JobStatus.pending] * 3, JobStatus.failed), heard)
    assert heard.warnings == []


def test_a_job_that_its_executor_has_forgotten_is_over_when_its_worker_is_gone(job: Job, heard: Heard) -> None:
    announce(job.folder)
    (job.folder / "log.txt").write_text("the last words\n")
    threading.Timer(0.4, retire, (job.folder,)).start()
    began_s = time.monotonic()
    assert _follow(job, Scripted(JobStatus.unknown), heard).status is JobStatus.unknown
    assert time.monotonic() - began_s >= 0.4
    assert heard.log == ["the last words"]


def test_a_worker_that_left_a_result_and_is_gone_has_succeeded_whatever_its_executor_says(job: Job, heard: Heard) -> None:
    class TidiesUp(Scripted):
        def state(self, job: Job) -> JobState:
            if (job.folder / "result.json").exists():
                (job.folder / "log.txt").write_text("the last words\n")
            (job.folder / "result.json").write_text("{}")
            return super().state(job)

    assert _follow(job, TidiesUp(JobStatus.running), heard) == JobState(JobStatus.succeeded, 0)
    assert heard.log == ["the last words"], "it is asked and heard once more"


def test_an_executor_that_is_silent_for_a_while_is_said_once_and_borne(job: Job, heard: Heard) -> None:
    away = ExecutorUnreachableError("no route")
    assert _follow(job, Scripted(away, away, JobStatus.running, away, JobStatus.failed), heard).status is JobStatus.failed
    assert heard.warnings == ["executor 'scripted' does not answer: no route"] * 2


def test_an_executor_that_stays_silent_is_given_up(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "UNREACHABLE_LIMIT_S", 0.3)

    def silent() -> str:
        raise ExecutorUnreachableError("no route")

    async def ask() -> None:
        patience = Patience(heard, "executor 'ray'")
        assert await patience.to(silent) is None
        await asyncio.sleep(0.5)
        assert await patience.to(lambda: "an answer") == "an answer"
        assert await patience.to(silent) is None, "it counts from its last answer"
        await asyncio.sleep(0.5)
        with pytest.raises(StageFailedError, match=r"executor 'ray' has not answered for 0.3 s: no route"):
            await patience.to(silent)

    asyncio.run(ask())


def test_a_job_is_asked_once_to_stop_and_waited_for_until_its_process_is_gone(job: Job, heard: Heard) -> None:
    announce(job.folder)
    threading.Timer(0.5, retire, (job.folder,)).start()
    executor = Scripted(JobStatus.running, ExecutorUnreachableError("busy"), JobStatus.stopped)
    began_s = time.monotonic()
    asyncio.run(stop(job, executor, heard))
    assert 0.5 <= time.monotonic() - began_s < 4
    assert executor.stops == 1
    assert heard.warnings == []


@pytest.mark.parametrize("status", [JobStatus.unknown, JobStatus.failed])
def test_a_job_that_has_ended_needs_no_waiting(job: Job, heard: Heard, status: JobStatus) -> None:
    asyncio.run(stop(job, Scripted(status), heard))
    assert heard.warnings == []


def test_a_job_that_does_not_stop_is_named(job: Job, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_STOP_MARGIN_S", 0.5)
    began_s = time.monotonic()
    asyncio.run(stop(job, Scripted(JobStatus.running), heard))
    assert time.monotonic() - began_s >= 1.0
    assert heard.warnings == ["job count-k-a1 did not stop within 1 s"]


def test_the_record_of_a_worker_names_its_process(job: Job, work: Work) -> None:
    work("import time; time.sleep(60)")
    executor = SubprocessExecutor()
    executor.submit(job)
    process = worker_process(job.folder)
    assert process is not None
    assert json.loads((job.folder / "worker.json").read_text())["pid"] == process.pid != os.getpid()
    executor.stop(job)
    _ended(executor, job)
