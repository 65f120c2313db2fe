"""One Prefect task for any stage: waits for `run_stage`, shows its log and progress, names what was cached.

Prefect shows; the store decides what is cached and the runtime what is tried again, so the task caches and retries
nothing itself. Await it or call it directly: cancelling a flow does not reach tasks that were `.submit()`ted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar, cast

from prefect import get_run_logger, task
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed
from prefect.utilities.annotations import quote

from tasks.runtime.contract.request import SilentObserver, StageObserver, StageRequest, Together
from tasks.runtime.execution.start import Runtime, run_stage
from tasks.runtime.tracking.tracker import Tracker

_PROGRESS_EVERY_S = 2.0
_LAST_REPORT_LIMIT_S = 10.0

T = TypeVar("T")


async def run_node(
    request: StageRequest,
    runtime: Runtime,
    tracker: Tracker,
    upstream: dict[str, dict[str, Any]] | None = None,
    observer: StageObserver | None = None,
) -> dict[str, Any]:
    """Run a node as a Prefect task inside the current flow run; returns `StageOutcome.to_json()`.

    `upstream` are the returned values of the nodes this one depends on, by input name: Prefect draws the arrows from
    them. The inputs themselves are in the request. `observer` is told what the stage does, beside Prefect and the tracker.
    """
    watching = _whole(observer or SilentObserver())
    returned = await stage_task(
        request.node, _whole(request), _whole(runtime), _whole(tracker), upstream or {}, observer=watching
    )
    return await returned.aresult() if isinstance(returned, State) else returned


@task(name="stage", task_run_name="{node}", persist_result=False, cache_policy=NO_CACHE, retries=0)
async def stage_task(
    node: str, request: StageRequest, runtime: Runtime, tracker: Tracker, upstream: dict[str, Any], *, observer: StageObserver
) -> dict[str, Any] | State[dict[str, Any]]:
    """The Prefect task behind `run_node`. Ends in state `Cached` when the artifact was there."""
    shown = _PrefectObserver(get_run_logger())
    with tracker.stage(request) as tracked:
        async with _progress_artifact(node, shown):
            outcome = await run_stage(request, runtime, Together(shown, tracked, observer))
        tracked.done(outcome)
    if outcome.cached:
        return Completed(name="Cached", message=outcome.origin, data=outcome.to_json())
    return outcome.to_json()


class _PrefectObserver(SilentObserver):
    """Writes what the stage says to the task run's log, and remembers how far it is."""

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self._logger = logger
        self.percent: float | None = None
        self.message = ""

    def on_attempt(self, attempt: int, folder: Path, attached: bool) -> None:
        self.percent = 0.0
        self._logger.info("%s attempt %d, files in %s", "Attached to" if attached else "Started", attempt, folder)

    def on_event(self, event: dict[str, Any]) -> None:
        if event["type"] == "progress" and event["total"] > 0:
            self.percent = min(100.0 * event["done"] / event["total"], 100.0)
            self.message = str(event["message"])

    def on_log(self, text: str) -> None:
        self._logger.info(text)

    def on_warning(self, message: str) -> None:
        self._logger.warning(message)


@contextlib.asynccontextmanager
async def _progress_artifact(node: str, shown: _PrefectObserver) -> AsyncIterator[None]:
    """Keep a progress artifact of the node while the block runs; the stage does not depend on it."""
    done = asyncio.Event()
    keeper = asyncio.create_task(_keep_progress(node, shown, done))
    try:
        yield
    finally:
        done.set()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(keeper, _LAST_REPORT_LIMIT_S)


async def _keep_progress(node: str, shown: _PrefectObserver, done: asyncio.Event) -> None:
    artifact = None
    reported: float | None = None
    ended = False
    while not ended:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), _PROGRESS_EVERY_S)
        ended = done.is_set()  # before the report, so that the last one tells the end
        if shown.percent is None or shown.percent == reported:
            continue
        reported = shown.percent
        description = f"{node}: {shown.message}"
        if artifact is None:
            artifact = await acreate_progress_artifact(reported, key=node.replace("_", "-"), description=description)
        else:
            await aupdate_progress_artifact(artifact, reported, description)


def _whole(value: T) -> T:
    """Prefect takes parameters apart, looking for futures; these have none and stay as they are."""
    return cast(T, quote(value))
