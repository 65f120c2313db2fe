"""Starting a stage: verified result → cached; running → attach; finished without a result or failed → next attempt.

So a killed flow process loses nothing, and two flows that want the same key do the work once. What decides is on disk
(store, work folder) and at the executor; nothing is remembered here.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from data_processing.errors import AlignflowError, PreemptedError
from tasks.runtime.contract.config import RuntimeConfig
from tasks.runtime.contract.disk import check_free_disk
from tasks.runtime.contract.failures import error_of
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.liveness import is_alive
from tasks.runtime.contract.request import SilentObserver, StageObserver, StageOutcome, StageRequest
from tasks.runtime.contract.spec import LOG_FILE, SPEC_FILE, Producer, Result, Spec, read_failure, read_result, write_record
from tasks.runtime.execution.attempts import Attempt, WorkFolder
from tasks.runtime.execution.executor import DuplicateJobError, Executor, ExecutorUnreachableError, Job, JobState, JobStatus
from tasks.runtime.execution.follow import Follow, Patience, stop, to_the_end
from tasks.runtime.execution.followers import Follower, is_coming, is_stopping
from tasks.runtime.keys.closure import PROJECT_ROOT, Code
from tasks.runtime.keys.stage_key import StageKey, stage_key
from tasks.runtime.store.base import ArtifactStore, reference
from tasks.runtime.store.manifest import Manifest
from tasks.runtime.store.places import store_of
from tasks.runtime.store.records import record_key, record_outcome

_ORPHAN_LIMIT_S = 10.0
_RETRY_CLAIM_S = 1.0
_LONGEST_WAIT_S = 300.0


@dataclass(frozen=True)
class Runtime:
    """Where stages run, where their results go, and the code that they run."""

    home: Home
    executor: Executor
    settings: RuntimeConfig
    code: Code = field(default_factory=Code)

    @property
    def store(self) -> ArtifactStore:
        """The artifact store of the home."""
        return store_of(self.home)


def key_of(request: StageRequest, code: Code | None = None) -> StageKey:
    """The key of a request under `code`; see `tasks.runtime.keys.stage_key.stage_key` for the errors."""
    return stage_key(request.stage, request.config, {name: ref.key for name, ref in request.inputs.items()}, request.seed, code)


async def run_stage(request: StageRequest, runtime: Runtime, observer: StageObserver | None = None) -> StageOutcome:
    """Bring the stage to a verified artifact and return its reference.

    Raises the error of the stage's exit code (`ConfigError`, `DataError`, `DivergedError` at once; others when
    `max_attempts` are used up), or `StageFailedError` for infrastructure. Cancelling stops the job first, unless another flow
    waits for it too.
    """
    observer = observer or SilentObserver()
    key = await asyncio.to_thread(key_of, request, runtime.code)
    observer.on_key(key.key, key.description)
    record_key(runtime.home, request, key)
    outcome = await _Starter(request, key, runtime, observer).outcome()
    record_outcome(runtime.home, request, outcome)
    return outcome


@dataclass(frozen=True)
class _Claim:
    """What was found under the lock: a finished artifact, or an attempt to follow, or one to come back after (`later`)."""

    hit: Manifest | None = None
    attempt: Attempt | None = None
    attached: bool = False
    later: bool = False


class _Starter:
    def __init__(self, request: StageRequest, key: StageKey, runtime: Runtime, observer: StageObserver) -> None:
        self._request = request
        self._key = key
        self._runtime = runtime
        self._observer = observer
        self._work = WorkFolder.of(runtime.home.work, key.stage.name, key.key)
        # A forced stage takes no result of an attempt before its own first one.
        self._accept_from: int | None = None if request.force else 0
        self._made_from = {name: ref.sha256 for name, ref in request.inputs.items()}
        # The attempt that is waited for, and this waiter's mark there.
        self._following: tuple[Attempt, Follower] | None = None

    async def outcome(self) -> StageOutcome:
        failures = preemptions = 0
        settings = self._runtime.settings
        while True:
            claim, state = await self._claim_and_follow()
            if claim.hit:
                return self._cached(claim.hit)
            assert claim.attempt
            folder = self._work.folder(claim.attempt.number)
            if result := read_result(folder):
                return self._done(result)
            error = self._error(claim.attempt, folder, state)
            if isinstance(error, PreemptedError) and preemptions < settings.max_preemptions:
                wait_s = min(settings.preemption_wait_s * 2**preemptions, _LONGEST_WAIT_S)
                preemptions += 1
                self._observer.on_warning(f"{error}\nIt goes on from there in {wait_s:g} s")
                await asyncio.sleep(wait_s)
                continue
            failures += 1
            if error.final or failures >= settings.max_attempts:
                raise error
            self._observer.on_warning(f"{error}\nAnother attempt resumes it ({settings.max_attempts - failures} left)")

    async def _claim_and_follow(self) -> tuple[_Claim, JobState]:
        """What there was, and how the attempt that was followed ended. Leaving early stops the job, unless others wait for it."""
        watch: Follow | None = None
        try:
            claim = await self._claim()
            if claim.hit:
                return claim, JobState(JobStatus.succeeded)
            assert claim.attempt
            assert self._following
            if self._accept_from is None:
                self._accept_from = claim.attempt.number
            self._observer.on_attempt(claim.attempt.number, self._work.folder(claim.attempt.number), claim.attached)
            job, runtime = self._job(claim.attempt), self._runtime
            watch = Follow(job, runtime.executor, runtime.settings, self._observer, self._following[1])
            state = await watch.until_end()
        except BaseException:
            await to_the_end(self._leave)
            if watch:
                watch.report()
            raise
        self._following[1].end()
        self._following = None  # so that who is interrupted before the next attempt leaves nothing
        return claim, state

    async def _leave(self) -> None:
        if self._following is None:
            return
        attempt, follower = self._following
        if await asyncio.to_thread(self._leave_locked, follower):
            await stop(self._job(attempt), self._runtime.executor, self._observer)
        else:
            self._observer.on_warning(f"left; job {attempt.job_id} goes on, because another run waits for it")

    def _leave_locked(self, follower: Follower) -> bool:
        with self._work.locked():
            return follower.leave()

    async def _claim(self) -> _Claim:
        patience = Patience(self._observer, f"executor '{self._runtime.executor.name}'")
        said = False
        while True:
            claim = await patience.to(self._claim_locked)
            if claim and not claim.later:
                return claim
            if claim and claim.attempt and not said:
                said = True
                self._observer.on_warning(f"waiting for the end of job {claim.attempt.job_id}")
            await asyncio.sleep(_RETRY_CLAIM_S)

    def _claim_locked(self) -> _Claim:
        """`later` while an attempt runs that is being stopped, or that works from other bytes: its end comes first."""
        with self._work.locked():
            newest = self._work.newest()
            if hit := self._hit():
                return _Claim(hit=hit)
            running = newest is not None and self._is_running(newest)
            if newest and running:
                stopping = is_stopping(self._work.folder(newest.number))
                if stopping:
                    self._runtime.executor.stop(self._job(newest))
                if stopping or newest.made_from != self._made_from:
                    return _Claim(attempt=newest, later=True)
            attempt = newest if newest and running else self._begin(newest)
            follower = Follower(self._work.folder(attempt.number), submitted=not running)
            follower.join()
            self._following = attempt, follower
            return _Claim(attempt=attempt, attached=running)

    def _hit(self) -> Manifest | None:
        """A result that may be taken: made from the very bytes that the inputs have now, and not before a forced stage began."""
        if self._accept_from is None:
            return None
        hit = self._runtime.store.lookup(self._key.stage.kind, self._key.key)
        fits = hit is not None and hit.producer.attempt >= self._accept_from and hit.made_from() == self._made_from
        return hit if fits else None

    def _is_running(self, attempt: Attempt) -> bool:
        folder = self._work.folder(attempt.number)
        if attempt.executor != self._runtime.executor.name:
            return is_alive(folder) or is_coming(folder)
        state = self._runtime.executor.state(self._job(attempt))
        if state.status.is_terminal:
            return False
        return state.status is not JobStatus.unknown or is_alive(folder) or is_coming(folder)

    def _begin(self, last: Attempt | None) -> Attempt:
        check_free_disk(self._runtime.home.root, self._runtime.settings.min_free_disk_gib)
        if last:
            self._leave_no_orphan(last)
        fresh = self._accept_from is None
        while True:
            attempt = self._work.begin(
                self._key.stage.name, self._key.key, self._runtime.executor.name, self._made_from, fresh=fresh
            )
            spec = self._spec(attempt)
            write_record(spec.folder / SPEC_FILE, spec)
            with suppress(DuplicateJobError):  # a cluster may remember ids of a home that is gone
                self._runtime.executor.submit(self._job(attempt))
                return attempt

    def _leave_no_orphan(self, last: Attempt) -> None:
        """Two live workers must not share the resume folder: an ended job's process is given a moment to go."""
        folder = self._work.folder(last.number)
        deadline = time.monotonic() + _ORPHAN_LIMIT_S
        while is_alive(folder):
            if time.monotonic() > deadline:
                raise ExecutorUnreachableError(f"the worker of {last.job_id} is still alive although its job has ended")
            time.sleep(0.1)
        shutil.rmtree(self._runtime.store.root / ".staging" / self._staging_name(last.number), ignore_errors=True)

    def _staging_name(self, attempt: int) -> str:
        return f"{self._key.stage.kind}-{self._key.key}-a{attempt}"

    def _spec(self, attempt: Attempt) -> Spec:
        request, stage = self._request, self._key.stage
        return Spec(
            stage=request.stage,
            key=self._key.key,
            kind=stage.kind,
            description=self._key.description,
            config=request.config.model_dump(mode="json"),
            inputs=dict(request.inputs),
            seed=request.seed,
            attempt=attempt.number,
            first_attempt=attempt.first_attempt,
            token=attempt.token,
            producer=Producer(run=request.run, node=request.node, stage=stage.name, attempt=attempt.number, commit=git_commit()),
            store=self._runtime.store.root,
            store_address=self._runtime.store.address,
            work=self._work.path,
            output=self._runtime.store.staging(stage.kind, self._key.key, attempt.number),
            resume=self._work.resume,
            secrets=self._runtime.settings.secrets,
            stall_after_s=getattr(request.config, "stall_after_s", self._runtime.settings.stall_after_s),
            placement_timeout_s=self._runtime.settings.placement_timeout_s,
            allowed_hosts=self._runtime.settings.allowed_hosts,
        )

    def _job(self, attempt: Attempt) -> Job:
        folder = self._work.folder(attempt.number)
        settings, code = self._runtime.settings, self._runtime.code.root
        reserves = bool(self._key.stage.resources(self._request.config).bundles)
        return Job(attempt.job_id, folder / SPEC_FILE, settings.stop_grace_s, code, settings.env, reserves)

    def _cached(self, hit: Manifest) -> StageOutcome:
        return StageOutcome(
            node=self._request.node,
            ref=reference(self._runtime.store, hit),
            cached=True,
            producer=f"{hit.producer.run}/{hit.producer.node}",
            seconds=hit.seconds,
            attempt=hit.producer.attempt,
            summary=hit.summary,
            adopted=hit.adopted.changed if hit.adopted else [],
        )

    def _done(self, result: Result) -> StageOutcome:
        return StageOutcome(
            node=self._request.node,
            ref=result.ref,
            cached=False,
            producer=result.ref.producer,
            seconds=result.seconds,
            attempt=result.attempt,
            summary=result.summary,
        )

    def _error(self, attempt: Attempt, folder: Path, state: JobState) -> AlignflowError:
        name = f"{self._request.node} (attempt {attempt.number})"
        if failure := read_failure(folder):
            return error_of(failure.exit_code, f"{name}: {failure.message}")
        code = "unknown" if state.exit_code is None else state.exit_code
        reason = _last_lines(folder / LOG_FILE) or state.message
        return error_of(state.exit_code or 1, f"{name}: the worker ended without a result, exit code {code}. {reason}")


def _last_lines(path: Path, lines: int = 20) -> str:
    try:
        tail = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return ""
    return "Last lines of its log:\n" + "\n".join(tail) if tail else ""


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit of the project's checkout; None outside one."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
