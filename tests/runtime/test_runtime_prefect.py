"""Stages as Prefect tasks of a real flow, against a real (temporary) Prefect server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.client.schemas.objects import Artifact, TaskRun
from prefect.testing.utilities import prefect_test_harness

from tasks.runtime.contract.request import StageOutcome, StageRequest
from tasks.runtime.execution.prefect_task import run_node
from tasks.runtime.execution.start import Runtime
from tasks.runtime.tracking.tracker import Tracker
from tests.runtime.stages import JoinConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
Requests = Callable[..., StageRequest]


@pytest.fixture(scope="module", autouse=True)
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=60):
        yield


@pytest.fixture
def tracker(runtime: Runtime) -> Iterator[Tracker]:
    tracker = Tracker(runtime.home, "flow-run")
    yield tracker
    tracker.finish("FINISHED")


def _flow(runtime: Runtime, tracker: Tracker, counting: StageRequest) -> Callable[[], Any]:
    @flow(name="two_stages")
    async def two_stages() -> dict[str, Any]:
        counted = await run_node(counting, runtime, tracker)
        join = StageRequest(
            "tests.runtime.stages:JOIN",
            "join_node",
            JoinConfig(),
            "flow-run",
            inputs={"counted": StageOutcome.from_json(counted).ref},
        )
        return await run_node(join, runtime, tracker, {"counted": counted})

    return two_stages


async def _task_runs(count: int, since: datetime) -> list[TaskRun]:
    """The `count` task runs since then, by name, once the server has seen them end: it learns of them by events."""
    deadline = time.monotonic() + 60
    async with get_client() as client:
        while True:
            runs = [run for run in await client.read_task_runs() if run.created and run.created > since]
            if len(runs) == count and all(run.state and run.state.is_final() for run in runs):
                return sorted(runs, key=lambda run: run.name)
            assert time.monotonic() < deadline, [(run.name, run.state_name) for run in runs]
            await asyncio.sleep(0.2)


async def _artifacts() -> list[Artifact]:
    async with get_client() as client:
        return await client.read_artifacts()


def test_nodes_are_task_runs_with_progress_then_cached_naming_the_producer(
    runtime: Runtime, tracker: Tracker, count_request: Requests
) -> None:
    async def scenario() -> None:
        began = datetime.now(UTC)
        await _flow(runtime, tracker, count_request(step_s=1.0, run="flow-run"))()
        first = await _task_runs(2, began)
        assert {(r.name, r.state_name) for r in first} == {("count_node", "Completed"), ("join_node", "Completed")}
        progress = {a.key: a.data for a in await _artifacts() if a.type == "progress"}
        assert progress["count-node"] == 100.0
        began = datetime.now(UTC)
        await _flow(runtime, tracker, count_request(step_s=1.0, run="second"))()
        second = await _task_runs(2, began)
        assert {(r.name, r.state_name, r.state_type.value if r.state_type else "") for r in second} == {
            ("count_node", "Cached", "COMPLETED"),
            ("join_node", "Cached", "COMPLETED"),
        }
        counted, joined = second
        assert counted.state is not None
        assert "flow-run/count_node" in str(counted.state.message)
        assert [str(i.id) for i in joined.task_inputs["upstream"] if hasattr(i, "id")] == [str(counted.id)]

    asyncio.run(scenario())


def test_a_failed_stage_fails_its_task_with_the_reason(runtime: Runtime, tracker: Tracker, count_request: Requests) -> None:
    async def scenario() -> None:
        began = datetime.now(UTC)
        with pytest.raises(Exception, match="asked to fail with 11"):
            await _flow(runtime, tracker, count_request(fail_code=11))()
        run = (await _task_runs(1, began))[0]
        assert run.state is not None
        assert (run.state_name, "asked to fail with 11" in str(run.state.message)) == ("Failed", True)

    asyncio.run(scenario())


def test_cancelling_the_flow_stops_the_stage(runtime: Runtime, tracker: Tracker, count_request: Requests) -> None:
    work = runtime.home.work

    async def scenario() -> None:
        running = asyncio.create_task(_flow(runtime, tracker, count_request(to=1000, step_s=0.2))())
        while not list(work.glob("*/resume/counted.json")):
            await asyncio.sleep(0.1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(scenario())
    (error,) = work.glob("*/a1/error.json")
    assert '"exit_code": 14' in error.read_text()
