"""Waiting for one attempt: status, log and events until it ends; stopping it when the waiter is interrupted."""

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
from tasks.runtime.contract.spec import EVENTS_FILE, RESULT_FILE
from tasks.runtime.execution.event_tail import EventTail
from tasks.runtime.execution.executor import Executor, ExecutorUnreachableError, Job, JobState, JobStatus

UNREACHABLE_LIMIT_S = 60.0
_STOP_MARGIN_S = 15.0
_STOP_POLL_S = 0.2
_LOG_EVERY_S = 1.0
_RESULT_POLL_S = 0.05

AnswerT = TypeVar("AnswerT")


async def follow(job: Job, executor: Executor, settings: RuntimeConfig, observer: StageObserver) -> JobState:
    """The state in which the job ended. Leaving early, by cancellation or error, stops the job and waits until it is gone."""
    watch = _Watch(job, executor, settings, observer)
    try:
        return await watch.until_end()
    except BaseException:
        await stop(job, executor, observer)
        await to_the_end(watch.report)
        raise


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


class _Watch:
    def __init__(self, job: Job, executor: Executor, settings: RuntimeConfig, observer: StageObserver) -> None:
        self._job = job
        self._executor = executor
        self._settings = settings
        self._observer = observer
        self._tail = EventTail(job.folder / EVENTS_FILE)
        self._log_offset = 0
        self._next_log = 0.0

    async def until_end(self) -> JobState:
        since = time.monotonic()
        answer = Patience(self._observer, f"executor '{self._executor.name}'")
        while True:
            state = await answer.to(lambda: self._executor.state(self._job))
            if state and state.status is JobStatus.pending and time.monotonic() - since > self._settings.start_timeout_s:
                raise StageFailedError(
                    f"job {self._job.id} is still pending after start_timeout_s={self._settings.start_timeout_s:g} s; "
                    "the cluster lacks room for it or cannot start processes"
                )
            ended = state is not None and (state.status.is_terminal or self._is_gone(state))
            await self.report(log_now=ended)
            if state and ended:
                return state
            if await self._has_finished_within(self._settings.poll_interval_s):
                # Asked for what it does and not for what it says: an executor tidies up after a worker that is gone.
                await answer.to(lambda: self._executor.state(self._job))
                await self.report()
                return JobState(JobStatus.succeeded, 0)

    async def report(self, log_now: bool = True) -> None:
        """Pass on what is new in the events and, less often, in the log."""
        for event in self._tail.read():
            self._observer.on_event(event)
        if not log_now and time.monotonic() < self._next_log:
            return
        self._next_log = time.monotonic() + _LOG_EVERY_S
        try:
            text, self._log_offset = await asyncio.to_thread(self._executor.read_log, self._job, self._log_offset)
        except ExecutorUnreachableError:
            return
        if text:
            self._observer.on_log(text)

    async def _has_finished_within(self, limit_s: float) -> bool:
        """Whether the worker has left a result and is gone. Executors notice that later than the files do."""
        deadline = time.monotonic() + limit_s
        while not (finished := (self._job.folder / RESULT_FILE).is_file() and not is_alive(self._job.folder)):
            if (left_s := deadline - time.monotonic()) <= 0:
                break
            await asyncio.sleep(min(left_s, _RESULT_POLL_S))
        return finished

    def _is_gone(self, state: JobState) -> bool:
        """A job that its executor does not know, with no live worker, will not come back."""
        return state.status is JobStatus.unknown and not is_alive(self._job.folder)


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
