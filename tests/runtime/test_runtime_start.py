"""Starting stages: cached, attached, tried again; and what is left after each way to die."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from data_processing.errors import ConfigError, DataError, DivergedError, OutOfMemoryError, PreemptedError, SupersededError
from tasks.runtime.contract.config import RuntimeConfig
from tasks.runtime.contract.failures import StageFailedError
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.liveness import announce, retire, worker_process
from tasks.runtime.contract.request import StageOutcome, StageRequest
from tasks.runtime.execution import start
from tasks.runtime.execution.attempts import WorkFolder
from tasks.runtime.execution.executor import DuplicateJobError, Job, JobState, JobStatus
from tasks.runtime.execution.followers import Follower, is_stopping
from tasks.runtime.execution.start import Runtime, key_of, run_stage
from tasks.runtime.execution.subprocess_executor import SubprocessExecutor
from tasks.runtime.store.artifacts import Store
from tasks.runtime.store.records import read_node, record_outcome
from tests.runtime.conftest import REPOSITORY, Heard, cancel_after
from tests.runtime.stages import JoinConfig

pytestmark = [pytest.mark.seconds, pytest.mark.timeout(60)]
Requests = Callable[..., StageRequest]


def _start(request: StageRequest, runtime: Runtime, heard: Heard | None = None) -> StageOutcome:
    return asyncio.run(run_stage(request, runtime, heard))


def _artifact(home: Home, outcome: StageOutcome) -> Path:
    return Store(home.store).folder(outcome.ref.kind, outcome.ref.key)


def test_a_stage_runs_once_and_is_cached_for_other_nodes_and_runs(
    runtime: Runtime, home: Home, count_request: Requests, heard: Heard, tmp_path: Path
) -> None:
    log = tmp_path / "started"
    first = _start(count_request(started_log=str(log)), runtime, heard)
    again = _start(count_request(started_log=str(log), run="later", node="other_node"), runtime)
    assert (first.cached, first.attempt, first.summary) == (False, 1, {"last": 3})
    assert (again.cached, again.producer, again.ref) == (True, "run/count_node", first.ref)
    assert len(log.read_text().splitlines()) == 1
    assert heard.log == ["[1/3] counted 1", "[2/3] counted 2", "[3/3] counted 3"]
    assert [e["type"] for e in heard.events] == ["metrics", "progress"] * 3 + ["summary"]
    record = read_node(home, "later", "other_node")
    assert record is not None
    assert (record.key, record.cached, record.ref) == (first.ref.key, True, first.ref)
    assert (record.seconds, record.attempt) == (again.seconds, again.attempt) == (first.seconds, 1)
    assert (again.node, again.summary) == ("other_node", first.summary)
    assert StageOutcome.from_json(json.loads(json.dumps(again.to_json()))) == again


def test_a_finished_stage_is_noticed_before_the_executor_is_asked_again(home: Home, count_request: Requests) -> None:
    seldom = RuntimeConfig(poll_interval_s=600.0, min_free_disk_gib=0.0)
    assert not _start(count_request(step_s=0.2), Runtime(home, SubprocessExecutor(), seldom)).cached


def test_the_artifact_carries_the_events_of_the_work(runtime: Runtime, home: Home, count_request: Requests) -> None:
    outcome = _start(count_request(kill_at=3), runtime)
    events = [json.loads(line) for line in (_artifact(home, outcome) / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["type"] == "metrics"] == [1, 2, 3]


def test_artifacts_flow_into_the_next_stage(runtime: Runtime, home: Home, count_request: Requests) -> None:
    counted = _start(count_request(label="x"), runtime)
    request = StageRequest("tests.runtime.stages:JOIN", "join", JoinConfig(), "run", inputs={"counted": counted.ref})
    joined = _start(request, runtime)
    assert (_artifact(home, joined) / "joined.txt").read_text() == "x-x"
    manifest = Store(home.store).manifest(joined.ref.kind, joined.ref.key)
    assert manifest is not None
    assert manifest.inputs == {"counted": counted.ref}


@pytest.mark.parametrize(("code", "error"), [(10, ConfigError), (11, DataError), (12, DivergedError)])
def test_a_stage_that_is_wrong_is_not_tried_again(
    runtime: Runtime, count_request: Requests, heard: Heard, code: int, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"count_node .attempt 1.: asked to fail with {code}"):
        _start(count_request(fail_code=code), runtime, heard)
    assert heard.attempts == [(1, False)]


@pytest.mark.parametrize("code", [13, 77])
def test_what_may_pass_is_tried_again(runtime: Runtime, count_request: Requests, heard: Heard, code: int) -> None:
    outcome = _start(count_request(fail_code=code), runtime, heard)
    assert outcome.attempt == 2
    assert heard.attempts == [(1, False), (2, False)]
    assert "Another attempt" in heard.warnings[0]


@pytest.mark.parametrize(("code", "error"), [(13, OutOfMemoryError), (77, StageFailedError)])
def test_attempts_are_limited(runtime: Runtime, count_request: Requests, heard: Heard, code: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        _start(count_request(fail_code=code, fail_always=True), runtime, heard)
    assert len(heard.attempts) == 2


def test_out_of_memory_names_what_lowers_it(runtime: Runtime, count_request: Requests) -> None:
    with pytest.raises(OutOfMemoryError, match="micro_batch_tokens"):
        _start(count_request(fail_code=13, fail_always=True), runtime)


def test_a_killed_worker_is_resumed_from_its_checkpoint(
    runtime: Runtime, home: Home, count_request: Requests, heard: Heard
) -> None:
    outcome = _start(count_request(kill_at=3, to=5), runtime, heard)
    counted = json.loads((_artifact(home, outcome) / "counted.json").read_text())
    assert counted == [[1, 1], [2, 1], [3, 2], [4, 2], [5, 2]]
    assert "exit code 137" in heard.warnings[0]
    assert [e["step"] for e in heard.events if e["type"] == "metrics"] == [1, 2, 3, 4, 5]
    work = home.work / f"count-{outcome.ref.key}"
    assert not (work / "resume").exists(), "checkpoints of a finished stage are given back"


def test_a_stage_that_goes_silent_fails_with_its_stacks_in_the_log(
    runtime: Runtime, count_request: Requests, heard: Heard
) -> None:
    began = time.monotonic()
    outcome = _start(count_request(hang_at=2, stall_after_s=1.5), runtime, heard)
    assert outcome.attempt == 2
    assert time.monotonic() - began < 15
    assert "no event for 1.5 s" in heard.warnings[0]
    assert any("stages.py" in line for line in heard.log), "where it hung is in the log"


def test_a_truncated_artifact_is_set_aside_and_made_again(runtime: Runtime, home: Home, count_request: Requests) -> None:
    first = _start(count_request(), runtime)
    os.truncate(_artifact(home, first) / "counted.json", 3)
    second = _start(count_request(run="second"), runtime)
    assert not second.cached
    assert second.ref.producer == "second/count_node"
    assert json.loads((_artifact(home, second) / "counted.json").read_text()) == [[1, 2], [2, 2], [3, 2]]
    assert len(list((home.store / ".corrupt").glob("*.reason.txt"))) == 1


def test_a_corrupt_input_stops_the_stage_that_reads_it(runtime: Runtime, home: Home, count_request: Requests) -> None:
    counted = _start(count_request(), runtime)
    os.truncate(_artifact(home, counted) / "label.txt", 1)
    request = StageRequest("tests.runtime.stages:JOIN", "join", JoinConfig(), "run", inputs={"counted": counted.ref})
    with pytest.raises(DataError, match=r"input 'counted' .* run the pipeline again"):
        _start(request, runtime)


def test_force_computes_again_from_nothing(runtime: Runtime, home: Home, count_request: Requests) -> None:
    _start(count_request(), runtime)
    forced = _start(count_request(run="forced", force=True), runtime)
    assert not forced.cached
    assert json.loads((_artifact(home, forced) / "counted.json").read_text()) == [[1, 2], [2, 2], [3, 2]]
    assert _start(count_request(), runtime).producer == "forced/count_node"


def test_two_flows_with_the_same_key_do_the_work_once(
    home: Home, settings: RuntimeConfig, count_request: Requests, tmp_path: Path
) -> None:
    log = tmp_path / "started"

    async def both() -> list[StageOutcome]:
        runtimes = [Runtime(home, SubprocessExecutor(), settings) for _ in range(2)]
        requests = [count_request(started_log=str(log), step_s=0.3, run=f"run{n}") for n in range(2)]
        return await asyncio.gather(*(run_stage(q, r) for q, r in zip(requests, runtimes, strict=True)))

    outcomes = asyncio.run(both())
    assert outcomes[0].ref == outcomes[1].ref
    assert len(log.read_text().splitlines()) == 1
    assert [o.attempt for o in outcomes] == [1, 1]


SUBMITTER = """
import asyncio, sys
from pathlib import Path
from tasks.runtime.contract.config import RuntimeConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageRequest
from tasks.runtime.execution.start import Runtime, run_stage
from tasks.runtime.execution.subprocess_executor import SubprocessExecutor
from tests.runtime.stages import CountConfig
home = Home.open(Path(sys.argv[1]))
request = StageRequest("tests.runtime.stages:COUNT", "node", CountConfig(to=8, step_s=0.3, started_log=sys.argv[2]), "killed_run")
asyncio.run(run_stage(request, Runtime(home, SubprocessExecutor(), RuntimeConfig(min_free_disk_gib=0.0))))
"""


def test_a_flow_process_killed_while_waiting_loses_nothing(
    runtime: Runtime, home: Home, count_request: Requests, heard: Heard, tmp_path: Path
) -> None:
    log = tmp_path / "started"
    submitter = subprocess.Popen(
        [sys.executable, "-c", SUBMITTER, str(home.root), str(log)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    _wait_for(log.is_file)
    submitter.send_signal(signal.SIGKILL)
    submitter.wait()
    outcome = _start(count_request(to=8, step_s=0.3, started_log=str(log)), runtime, heard)
    assert heard.attempts == [(1, True)]
    assert (outcome.attempt, outcome.producer) == (1, "killed_run/node")
    assert len(log.read_text().splitlines()) == 1


def test_a_superseded_worker_cannot_publish(runtime: Runtime, home: Home, count_request: Requests, tmp_path: Path) -> None:
    """A worker that was given up, but lives on, is overtaken; the newer attempt's artifact stays."""
    log = tmp_path / "started"
    request = count_request(to=6, step_s=0.3, started_log=str(log))

    async def give_up() -> None:
        task = asyncio.create_task(run_stage(request, runtime))
        while not log.is_file():
            await asyncio.sleep(0.05)
        work = home.work / f"count-{key_of(request).key}"
        token = json.loads((work / "attempt.json").read_text())
        (work / "attempt.json").write_text(json.dumps({**token, "number": 2, "token": "of-a-newer-attempt"}))
        with pytest.raises(SupersededError, match="attempt 2 owns this key"):
            await task

    runtime = Runtime(home, runtime.executor, runtime.settings.model_copy(update={"max_attempts": 1}))
    asyncio.run(give_up())
    key = key_of(request)
    assert Store(home.store).lookup(key.stage.kind, key.key) is None


def test_cancelling_lets_the_stage_save_and_waits_until_it_is_gone(
    runtime: Runtime, home: Home, count_request: Requests, heard: Heard
) -> None:
    request = count_request(to=1000, step_s=0.2)

    asyncio.run(cancel_after(4, request, runtime, heard))
    assert heard.folder is not None
    assert worker_process(heard.folder) is None
    assert json.loads((heard.folder / "error.json").read_text())["exit_code"] == 14
    assert (home.work / f"count-{key_of(request).key}" / "resume" / "counted.json").is_file()


def test_a_second_cancellation_does_not_take_back_the_first(runtime: Runtime, count_request: Requests, heard: Heard) -> None:
    """A signal cancels a run more than once, and its threads may all be at work on something else."""
    request = count_request(to=1000, step_s=0.2)

    async def cancel() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        task = asyncio.create_task(run_stage(request, runtime, heard))
        while len(heard.events) < 2:
            await asyncio.sleep(0.05)
        blocking = asyncio.get_running_loop().run_in_executor(None, time.sleep, 1.0)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.CancelledError):
            await task
        await blocking

    asyncio.run(cancel())
    assert heard.folder is not None
    assert worker_process(heard.folder) is None


def test_cancelling_while_a_job_starts_stops_it(home: Home, count_request: Requests) -> None:
    class SlowToSubmit(SubprocessExecutor):
        submitted: ClassVar[list[Job]] = []

        def submit(self, job: Job) -> None:
            time.sleep(0.5)
            super().submit(job)
            self.submitted.append(job)
            time.sleep(0.5)

    runtime = Runtime(home, SlowToSubmit(), RuntimeConfig(stop_grace_s=5.0))

    async def cancel() -> None:
        task = asyncio.create_task(run_stage(count_request(to=1000, step_s=0.2), runtime))
        while not SlowToSubmit.submitted:
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert worker_process(SlowToSubmit.submitted[0].folder) is None


@pytest.mark.parametrize("leaves", [0, 1], ids=["who submitted it", "who attached"])
def test_a_run_that_leaves_a_shared_job_leaves_it_to_the_others(
    home: Home, settings: RuntimeConfig, count_request: Requests, leaves: int
) -> None:
    async def share() -> tuple[Heard, StageOutcome]:
        heards = [Heard(), Heard()]
        tasks = []
        for number, heard in enumerate(heards):
            runtime = Runtime(home, SubprocessExecutor(), settings)
            request = count_request(to=10, step_s=0.2, run=f"run{number}")
            tasks.append(asyncio.create_task(run_stage(request, runtime, heard)))
            while not heard.attempts:
                await asyncio.sleep(0.05)
        tasks[leaves].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[leaves]
        return heards[leaves], await tasks[1 - leaves]

    left, outcome = asyncio.run(share())
    assert "another run waits for it" in left.warnings[-1]
    assert outcome.attempt == 1
    assert not outcome.cached


def test_the_last_of_two_that_leave_stops_the_job(home: Home, settings: RuntimeConfig, count_request: Requests) -> None:
    async def leave() -> Path:
        heards = [Heard(), Heard()]
        tasks = []
        for heard in heards:
            runtime = Runtime(home, SubprocessExecutor(), settings)
            tasks.append(asyncio.create_task(run_stage(count_request(to=1000, step_s=0.2), runtime, heard)))
            while not heard.attempts:
                await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert heards[0].folder is not None
        return heards[0].folder

    assert worker_process(asyncio.run(leave())) is None


def test_who_comes_while_a_job_is_being_stopped_waits_and_goes_on_from_its_checkpoint(
    home: Home, settings: RuntimeConfig, count_request: Requests, heard: Heard
) -> None:
    request = count_request(to=12, step_s=0.4)

    async def overlap() -> StageOutcome:
        first = asyncio.create_task(run_stage(request, Runtime(home, SubprocessExecutor(), settings), heard))
        while len(heard.events) < 4:
            await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.sleep(0.05)
        second = await run_stage(request, Runtime(home, SubprocessExecutor(), settings))
        with pytest.raises(asyncio.CancelledError):
            await first
        return second

    outcome = asyncio.run(overlap())
    counted = json.loads((_artifact(home, outcome) / "counted.json").read_text())
    assert outcome.attempt == 2
    assert counted[0] == [1, 1]
    assert counted[-1] == [12, 2]


def test_an_attempt_that_was_left_is_stopped_and_waited_for_which_is_said_once(
    home: Home, settings: RuntimeConfig, count_request: Requests, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OutOfReach(SubprocessExecutor):
        asked: ClassVar[list[str]] = []

        def stop(self, job: Job) -> None:
            self.asked.append(job.id)

    monkeypatch.setattr(start, "_RETRY_CLAIM_S", 0.1)
    request = count_request()
    key = key_of(request).key
    work = WorkFolder.of(home.work, "count", key)
    left = work.begin("count", key, "subprocess", {}, fresh=True)
    announce(work.folder(1))
    (work.folder(1) / "stopping").touch()
    threading.Timer(1.0, retire, (work.folder(1),)).start()
    assert _start(request, Runtime(home, OutOfReach(), settings), heard).attempt == 2
    assert heard.warnings == [f"waiting for the end of job {left.job_id}"]
    assert len(OutOfReach.asked) > 1
    assert set(OutOfReach.asked) == {left.job_id}


def test_two_runs_with_executors_of_their_own_do_the_work_once_also_while_its_worker_has_yet_to_begin(
    home: Home, settings: RuntimeConfig, count_request: Requests, heard: Heard
) -> None:
    class Late(SubprocessExecutor):
        """Its workers begin a second late; of those of others it knows nothing."""

        def __init__(self) -> None:
            super().__init__()
            self._due: dict[str, float] = {}

        def submit(self, job: Job) -> None:
            self._due[job.id] = time.monotonic() + 1.0

        def state(self, job: Job) -> JobState:
            if job.id in self._due:
                if time.monotonic() < self._due[job.id]:
                    return JobState(JobStatus.pending)
                del self._due[job.id]
                super().submit(job)
            return super().state(job)

    async def both() -> list[StageOutcome]:
        first = asyncio.create_task(run_stage(count_request(), Runtime(home, Late(), settings)))
        await asyncio.sleep(0.3)
        return await asyncio.gather(first, run_stage(count_request(run="other"), Runtime(home, Late(), settings), heard))

    assert [outcome.attempt for outcome in asyncio.run(both())] == [1, 1]
    assert heard.log == ["[1/3] counted 1", "[2/3] counted 2", "[3/3] counted 3"]


def test_a_folder_that_is_away_for_a_moment_ends_no_run(runtime: Runtime, count_request: Requests, heard: Heard) -> None:
    async def follow() -> StageOutcome:
        task = asyncio.create_task(run_stage(count_request(to=6, step_s=0.2), runtime, heard))
        while not heard.attempts:
            await asyncio.sleep(0.01)
        assert heard.folder is not None
        shutil.rmtree(heard.folder / "followers")
        return await task

    assert asyncio.run(follow()).attempt == 1


def test_what_an_observer_cannot_write_is_not_passed_over(runtime: Runtime, count_request: Requests) -> None:
    class Full(Heard):
        def on_event(self, event: dict[str, Any]) -> None:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        _start(count_request(to=1000, step_s=0.1), runtime, Full())


def test_a_stage_without_a_limit_of_its_own_has_that_of_the_runtime(
    runtime: Runtime, home: Home, count_request: Requests
) -> None:
    counted = _start(count_request(stall_after_s=7.0), runtime)
    _start(StageRequest("tests.runtime.stages:JOIN", "join", JoinConfig(), "run", {"counted": counted.ref}), runtime)
    limits = {path.parents[1].name.split("-")[0]: json.loads(path.read_text()) for path in home.work.glob("*/a1/spec.json")}
    assert {name: spec["stall_after_s"] for name, spec in limits.items()} == {"count": 7.0, "join": 3600.0}


def test_a_follower_that_was_killed_does_not_keep_a_job_alive(tmp_path: Path) -> None:
    dead, alive = Follower(tmp_path), Follower(tmp_path)
    dead.join()
    alive.join()
    [record] = [path for path in tmp_path.glob("followers/*/worker.json") if path.parent == dead._own]
    record.write_text(json.dumps({**json.loads(record.read_text()), "created": 1.0}))
    assert alive.leave()
    assert is_stopping(tmp_path)


def test_preemptions_use_up_no_attempts_and_wait_longer_each_time(
    home: Home, settings: RuntimeConfig, count_request: Requests, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept, sleep = [], asyncio.sleep

    async def noted_sleep(delay: float) -> None:
        slept.append(delay)
        await sleep(delay)

    monkeypatch.setattr(start, "_LONGEST_WAIT_S", 0.03)
    monkeypatch.setattr(asyncio, "sleep", noted_sleep)
    few = settings.model_copy(update={"max_preemptions": 3, "max_attempts": 1, "preemption_wait_s": 0.01})
    with pytest.raises(PreemptedError):
        _start(count_request(fail_code=14, fail_always=True), Runtime(home, SubprocessExecutor(), few), heard)
    assert [number for number, _ in heard.attempts] == [1, 2, 3, 4]
    assert [warning.rpartition(" in ")[2] for warning in heard.warnings] == ["0.01 s", "0.02 s", "0.03 s"]
    assert [delay for delay in slept if delay in (0.01, 0.02, 0.03)] == [0.01, 0.02, 0.03]


def test_a_result_made_from_other_bytes_of_its_inputs_is_not_taken(runtime: Runtime, home: Home, count_request: Requests) -> None:
    """Forcing a stage that gives other bytes under the same key makes what follows from it again."""

    def joined() -> StageOutcome:
        counted = _start(count_request(), runtime)
        return _start(StageRequest("tests.runtime.stages:JOIN", "join", JoinConfig(), "run", {"counted": counted.ref}), runtime)

    first = joined()
    assert joined().cached
    forced = _start(count_request(kill_at=2, force=True), runtime)  # another attempt counts, so other bytes
    again = joined()
    assert not again.cached
    manifest = Store(home.store).manifest(again.ref.kind, again.ref.key)
    assert manifest is not None
    assert manifest.inputs == {"counted": forced.ref}
    assert again.ref.key == first.ref.key
    assert joined().cached


def test_checkpoints_made_from_other_bytes_are_not_resumed(runtime: Runtime, home: Home, count_request: Requests) -> None:
    work = WorkFolder.of(home.work, "join", "k" * 64)
    with work.locked():
        work.begin("join", "k" * 64, "subprocess", {"counted": "a"}, fresh=False)
        (work.resume / "checkpoint").touch()
        assert work.begin("join", "k" * 64, "subprocess", {"counted": "a"}, fresh=False).first_attempt == 1
        assert work.begin("join", "k" * 64, "subprocess", {"counted": "b"}, fresh=False).first_attempt == 3


def test_a_stage_that_nobody_could_signal_ends_by_the_mark_in_its_folder(
    home: Home, settings: RuntimeConfig, count_request: Requests, heard: Heard
) -> None:
    class OutOfReach(SubprocessExecutor):
        def stop(self, job: Job) -> None:
            """As for a worker of another machine."""

    runtime = Runtime(home, OutOfReach(), settings.model_copy(update={"stop_grace_s": 20.0}))

    asyncio.run(cancel_after(2, count_request(to=1000, step_s=0.2), runtime, heard))
    assert heard.folder is not None
    assert json.loads((heard.folder / "error.json").read_text())["exit_code"] == 14


def test_a_worker_of_another_machine_is_followed_by_its_heartbeat(
    home: Home, settings: RuntimeConfig, count_request: Requests, heard: Heard
) -> None:
    """Two machines, one home: the record of the worker names a host that is not this one."""

    async def attach() -> StageOutcome:
        request = count_request(to=12, step_s=0.3)
        first = asyncio.create_task(run_stage(request, Runtime(home, SubprocessExecutor(), settings), heard))
        while not heard.events:
            await asyncio.sleep(0.05)
        assert heard.folder is not None
        record = heard.folder / "worker.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "host": "another", "pid": 1}))
        there = Heard()
        outcome = await run_stage(request, Runtime(home, SubprocessExecutor(), settings), there)
        assert there.attempts == [(1, True)]
        await first
        return outcome

    assert asyncio.run(attach()).attempt == 1


def test_an_id_that_the_executor_has_seen_in_another_home_is_passed_over(
    home: Home, settings: RuntimeConfig, count_request: Requests, heard: Heard
) -> None:
    class Remembers(SubprocessExecutor):
        def submit(self, job: Job) -> None:
            if job.id.endswith("-a1"):
                raise DuplicateJobError(job.id)
            super().submit(job)

    assert _start(count_request(), Runtime(home, Remembers(), settings), heard).attempt == 2
    assert heard.attempts == [(2, False)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [(0, "exit code unknown. the node is gone"), (25, "exit code unknown. Last lines of its log:\nline 6\nline 7\n")],
)
def test_a_worker_that_ended_without_a_word_is_told_by_the_end_of_its_log(
    home: Home, settings: RuntimeConfig, count_request: Requests, lines: int, said: str
) -> None:
    class Lost(SubprocessExecutor):
        def submit(self, job: Job) -> None:
            if lines:
                (job.folder / "log.txt").write_text("".join(f"line {number}\n" for number in range(1, lines + 1)))

        def state(self, job: Job) -> JobState:
            return JobState(JobStatus.failed, None, "the node is gone")

    once = settings.model_copy(update={"max_attempts": 1})
    with pytest.raises(StageFailedError) as caught:
        _start(count_request(), Runtime(home, Lost(), once))
    assert said in str(caught.value)
    assert str(caught.value).endswith("line 25" if lines else "gone")


def test_no_attempt_begins_while_the_worker_of_an_ended_job_lives(
    home: Home, settings: RuntimeConfig, count_request: Requests, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(SubprocessExecutor):
        def state(self, job: Job) -> JobState:
            return JobState(JobStatus.failed, 1) if job.id.endswith("-a1") else super().state(job)

    monkeypatch.setattr(start, "_ORPHAN_LIMIT_S", 0.2)
    request = count_request()
    key = key_of(request)
    work = WorkFolder.of(home.work, "count", key.key)
    work.begin("count", key.key, "subprocess", {}, fresh=True)
    announce(work.folder(1))
    left = Store(home.store).staging("numbers", key.key, 1)
    threading.Timer(1.0, retire, (work.folder(1),)).start()
    assert _start(request, Runtime(home, Ended(), settings), heard).attempt == 2
    assert "is still alive although its job has ended" in heard.warnings[0]
    assert not left.exists(), "what it had made so far goes"


def test_a_record_that_somebody_removed_meanwhile_is_not_made_up(runtime: Runtime, home: Home, count_request: Requests) -> None:
    outcome = _start(count_request(), runtime)
    record_outcome(home, count_request(run="removed"), outcome)
    assert read_node(home, "removed", "count_node") is None


def test_the_commit_of_the_checkout_is_known_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "PROJECT_ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    commit = start.git_commit.__wrapped__
    assert commit() is None
    who = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for command in (["init", "-q", "-b", "main"], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert commit() == (tmp_path / ".git" / "refs" / "heads" / "main").read_text().strip()


def test_no_room_on_the_disk_is_said_before_anything_starts(home: Home, count_request: Requests, heard: Heard) -> None:
    runtime = Runtime(home, SubprocessExecutor(), RuntimeConfig(min_free_disk_gib=1e9))
    with pytest.raises(ConfigError, match="min_free_disk_gib"):
        _start(count_request(), runtime, heard)
    assert heard.attempts == []


def _wait_for(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
