"""Waiting for one attempt: status, log and events until it ends; and stopping it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

from tasks.runtime.contract.config import RuntimeConfig
from tasks.runtime.contract.failures import StageFailedError
from tasks.runtime.contract.liveness import is_alive
from tasks.runtime.contract.request import StageObserver
from tasks.runtime.contract.spec import EVENTS_FILE, LOG_FILE, RESULT_FILE
from tasks.runtime.execution.event_tail import EventTail, LineTail
from tasks.runtime.execution.executor import Executor, ExecutorUnreachableError, Job, JobState, JobStatus
from tasks.runtime.execution.followers import Follower

UNREACHABLE_LIMIT_S = 60.0
_STOP_MARGIN_S = 5.0
_STOP_POLL_S = 0.2
_SAY_PENDING_AFTER_S = 30.0
_RESULT_POLL_S = 0.05

AnswerT = TypeVar("AnswerT")


async def stop(job: Job, executor: Executor, observer: StageObserver) -> None:
    """Stop the job and wait until neither its executor nor its process says that it runs; cancelling does not keep it from that."""
    await to_the_end(lambda: _stop(job, executor, observer))


async def to_the_end(work: Callable[[], Coroutine[Any, Any, AnswerT]]) -> AnswerT:
    """What `work` returns, however often this task is cancelled meanwhile; begun anew where it was cancelled itself.

    One signal cancels a run more than once: the loop cancels every task, and those that wait for others cancel them again.
    The second time would take back a call that no thread has begun yet. Being cancelled is forgotten here: raise it after.
    """
    while True:
        task = asyncio.ensure_future(work())
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(task)
        if not task.cancelled():
            return task.result()


class Follow:
    """One follower's view of one attempt."""

    def __init__(
        self, job: Job, executor: Executor, settings: RuntimeConfig, observer: StageObserver, follower: Follower
    ) -> None:
        self._job = job
        self._executor = executor
        self._settings = settings
        self._observer = observer
        self._follower = follower
        self._events = EventTail(job.folder / EVENTS_FILE)
        self._log = LineTail(job.folder / LOG_FILE)

    async def until_end(self) -> JobState:
        """The state in which the job ended. Raises `StageFailedError` where it does not start, or its executor stays silent."""
        pending = _Pending(self._job, self._settings.start_timeout_s, self._observer)
        answer = Patience(self._observer, f"executor '{self._executor.name}'")
        while True:
            state = await answer.to(lambda: self._executor.state(self._job))
            if state and state.status is JobStatus.pending:
                pending.bear()
            ended = state is not None and (state.status.is_terminal or self._is_gone(state))
            self.report()
            with suppress(OSError):  # a shared folder that is away for a moment
                self._follower.beat()
            if state and ended:
                return state
            if await self._has_finished_within(self._settings.poll_interval_s):
                # Asked for what it does and not for what it says: an executor tidies up after a worker that is gone.
                await answer.to(lambda: self._executor.state(self._job))
                self.report()
                return JobState(JobStatus.succeeded, 0)

    def report(self) -> None:
        """Pass on what is new in the events and in the log; what cannot be read now is read later."""
        events: list[dict[str, Any]] = []
        lines: list[bytes] = []
        with suppress(OSError):
            events = self._events.read()
        with suppress(OSError):
            lines = self._log.read()
        for event in events:
            self._observer.on_event(event)
        if lines:
            self._observer.on_log(b"\n".join(lines).decode(errors="replace"))

    async def _has_finished_within(self, limit_s: float) -> bool:
        """Whether the worker has left a result and is gone. Executors notice that later than the files do."""
        deadline = time.monotonic() + limit_s
        while not (finished := (self._job.folder / RESULT_FILE).is_file() and not is_alive(self._job.folder)):
            if (left_s := deadline - time.monotonic()) <= 0:
                break
            await asyncio.sleep(min(left_s, _RESULT_POLL_S))
        return finished

    def _is_gone(self, state: JobState) -> bool:
        """A job that its executor does not know, with no live worker, will not come back; another's executor may know it."""
        return state.status is JobStatus.unknown and not is_alive(self._job.folder) and not self._follower.may_begin()


class _Pending:
    """A job that has not started: said after half a minute, and then less and less often; an error after `limit_s`."""

    def __init__(self, job: Job, limit_s: float | None, observer: StageObserver) -> None:
        self._job = job
        self._limit_s = limit_s
        self._observer = observer
        self._since = time.monotonic()
        self._say_after_s = _SAY_PENDING_AFTER_S

    def bear(self) -> None:
        """It is still pending."""
        waited_s = time.monotonic() - self._since
        what = f"job {self._job.id} is pending: the cluster lacks room for it or cannot start processes"
        if self._limit_s is not None and waited_s > self._limit_s:
            raise StageFailedError(f"{what}; given up after start_timeout_s={self._limit_s:g} s")
        if waited_s > self._say_after_s:
            self._say_after_s *= 2
            self._observer.on_warning(f"{what}; waiting for {waited_s:.0f} s")


class Patience:
    """Bears with an executor that does not answer, for a while: None instead of an answer, then `StageFailedError`."""

    def __init__(self, observer: StageObserver, who: str) -> None:
        self._observer = observer
        self._who = who
        self._silent_since: float | None = None

    async def to(self, call: Callable[[], AnswerT]) -> AnswerT | None:
        """The answer of `call`, made in a thread. Cancelling waits for it to return: what it does is not done behind one's back."""
        # A future and no task: when the loop cancels every task, this one call is left alone.
        calling = asyncio.get_running_loop().run_in_executor(None, copy_context().run, call)
        try:
            answer = await asyncio.shield(calling)
        except asyncio.CancelledError:
            await to_the_end(lambda: asyncio.wait([calling]))
            raise
        except ExecutorUnreachableError as error:
            self._bear(error)
            return None
        self._silent_since = None
        return answer

    def _bear(self, error: ExecutorUnreachableError) -> None:
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
            self._observer.on_warning(f"{self._who} does not answer: {error}")
        elif now - self._silent_since > UNREACHABLE_LIMIT_S:
            raise StageFailedError(f"{self._who} has not answered for {UNREACHABLE_LIMIT_S:g} s: {error}") from error


async def _stop(job: Job, executor: Executor, observer: StageObserver) -> None:
    deadline = time.monotonic() + job.stop_grace_s + _STOP_MARGIN_S
    asked = False
    while time.monotonic() < deadline:
        try:
            if not asked:
                await asyncio.to_thread(executor.stop, job)
                asked = True
            state = await asyncio.to_thread(executor.state, job)
            if (state.status.is_terminal or state.status is JobStatus.unknown) and not is_alive(job.folder):
                return
        except ExecutorUnreachableError:
            pass
        await asyncio.sleep(_STOP_POLL_S)
    observer.on_warning(f"job {job.id} did not stop within {job.stop_grace_s + _STOP_MARGIN_S:g} s")
