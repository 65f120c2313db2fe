"""MLflow as the flows see it: complete, terminal, and never in the way."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from data_processing.errors import ConfigError
from tasks.register import register_model
from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageOutcome, StageRequest
from tasks.runtime.execution.start import Runtime, run_stage
from tasks.runtime.tracking.tracker import Tracker, recover
from tests.runtime.conftest import REPOSITORY, model_ref
from tests.runtime.stages import CountConfig

pytestmark = [pytest.mark.seconds, pytest.mark.timeout(60)]
Requests = Callable[..., StageRequest]


@pytest.fixture
def tracker(home: Home, database: str, request: pytest.FixtureRequest) -> Iterator[Tracker]:
    tracker = Tracker(home, f"run-{request.node.name}"[:80], params={"preset": "tiny", "sft": {"steps": 3}}, uri=database)
    yield tracker
    tracker.finish("KILLED")


def _experiments(client: MlflowClient) -> list[str]:
    return [experiment.experiment_id for experiment in client.search_experiments()]


def _run(tracker: Tracker, request: StageRequest, runtime: Runtime) -> StageOutcome:
    with tracker.stage(request) as tracked:
        outcome = asyncio.run(run_stage(request, runtime, tracked))
        tracked.done(outcome)
    return outcome


def _child(client: MlflowClient, tracker: Tracker, node: str) -> Run:
    run_id = tracker.run_id(node, wait_s=20)
    assert run_id is not None
    return client.get_run(run_id)


def test_a_run_that_is_over_in_a_moment_is_sent_when_it_is_over(home: Home, database: str, client: MlflowClient) -> None:
    tracker = Tracker(home, "run-over", uri=database, later=True)
    assert not tracker.finish("FINISHED")
    deadline = time.monotonic() + 50
    while not (found := client.search_runs(_experiments(client), "run_name = 'run-over'")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    while client.get_run(found[0].info.run_id).info.status != "FINISHED":
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("uri", "server"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://me:secret@tracker.example/mlflow/", "https://tracker.example/mlflow"),
        ("sqlite:////home/me/mlflow.db", None),
    ],
)
def test_pages_are_those_of_a_server_and_name_no_password(home: Home, uri: str, server: str | None) -> None:
    tracker = Tracker(home, "run-pages", uri=uri, later=True)
    assert tracker.server == server
    assert tracker.page is None, "the server has not taken the run"


def test_an_id_that_is_asked_for_is_known_although_nothing_is_sent_yet(home: Home, database: str, client: MlflowClient) -> None:
    tracker = Tracker(home, "run-asked", uri=database, later=True)
    run_id = tracker.run_id(wait_s=40)
    assert run_id is not None
    assert tracker.finish("FINISHED")
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_stage_is_a_finished_child_run_with_its_metrics(
    tracker: Tracker, client: MlflowClient, runtime: Runtime, count_request: Requests
) -> None:
    outcome = _run(tracker, count_request(kill_at=3, to=4), runtime)
    assert tracker.finish("FINISHED")
    child, parent = _child(client, tracker, "count_node"), _child(client, tracker, "")
    assert (child.info.status, parent.info.status) == ("FINISHED", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["alignflow.key"] == outcome.ref.key
    assert child.data.tags["alignflow.attempt"] == "2"
    assert child.data.tags["alignflow.artifact"] == outcome.ref.uri
    assert child.data.params["to"] == "4"
    assert parent.data.params == {"preset": "tiny", "sft.steps": "3"}
    history = client.get_metric_history(child.info.run_id, "square")
    assert sorted((m.step, m.value) for m in history) == [(n, float(n * n)) for n in range(1, 5)]
    assert child.data.metrics["summary/last"] == 4.0


def test_what_a_run_found_can_be_compared_with_other_runs(tracker: Tracker, client: MlflowClient) -> None:
    tracker.metrics({"online/procedures.score": 0.5, "online/procedures.score vs sft": 0.25})
    assert tracker.finish("FINISHED")
    assert _child(client, tracker, "").data.metrics == {"online/procedures.score": 0.5, "online/procedures.score vs sft": 0.25}


def test_metrics_are_there_while_the_stage_runs(
    tracker: Tracker, client: MlflowClient, runtime: Runtime, count_request: Requests
) -> None:
    request = count_request(to=1000, step_s=0.1)

    async def look_then_cancel() -> int:
        with tracker.stage(request) as tracked:
            task = asyncio.create_task(run_stage(request, runtime, tracked))
            seen = await asyncio.to_thread(_wait_for_metric, client, tracker)
            task.cancel()
            await task
        return seen

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(look_then_cancel())
    tracker.finish("KILLED")
    assert _child(client, tracker, "count_node").info.status == "KILLED"


def _wait_for_metric(client: MlflowClient, tracker: Tracker) -> int:
    run_id = tracker.run_id("count_node", wait_s=20)
    assert run_id is not None
    deadline = time.monotonic() + 20
    while not (history := client.get_metric_history(run_id, "count")):
        assert time.monotonic() < deadline, "no metric arrived while the stage ran"
        time.sleep(0.1)
    assert client.get_run(run_id).info.status == "RUNNING"
    return len(history)


def test_a_failed_stage_is_a_failed_run_with_the_reason(
    tracker: Tracker, client: MlflowClient, runtime: Runtime, count_request: Requests
) -> None:
    with pytest.raises(ConfigError):
        _run(tracker, count_request(fail_code=10), runtime)
    tracker.finish("FAILED")
    child = _child(client, tracker, "count_node")
    assert child.info.status == "FAILED"
    assert "asked to fail with 10" in child.data.tags["alignflow.error"]


def test_a_cached_stage_points_at_the_run_that_did_the_work(
    tracker: Tracker, client: MlflowClient, runtime: Runtime, database: str, count_request: Requests
) -> None:
    request = count_request(label="cached case")
    _run(tracker, request, runtime)
    assert tracker.finish("FINISHED")
    later = Tracker(runtime.home, "later", uri=database)
    _run(later, request, runtime)
    assert later.finish("FINISHED")
    cached = _child(client, later, "count_node")
    assert cached.data.tags["alignflow.cached"] == "true"
    assert cached.data.tags["alignflow.producing_run_id"] == tracker.run_id("count_node")


def test_datasets_are_inputs_by_reference(tracker: Tracker, client: MlflowClient, data_ref: ArtifactRef) -> None:
    request = StageRequest("sft", "sft", CountConfig(), "run", inputs={"data": data_ref})
    with tracker.stage(request):
        pass
    assert tracker.finish("FINISHED")
    (given,) = _child(client, tracker, "sft").inputs.dataset_inputs
    assert given.dataset.digest == data_ref.sha256[:32]
    assert data_ref.uri in given.dataset.source


def test_strange_names_and_numbers_do_not_stop_the_rest(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.stage(StageRequest("x", "odd", CountConfig(label="l" * 10_000), "run")) as tracked:
        event = {"type": "metrics", "time": 1.0, "step": 1, "values": {"a@b(c)": 1.0, "inf": "inf", "nan": "nan", "good": 2.0}}
        tracked.on_event(event)
        tracked.on_event(event)
    assert tracker.finish("FINISHED")
    child = _child(client, tracker, "odd")
    assert child.data.metrics["good"] == 2.0
    assert child.data.metrics["a_b_c_"] == 1.0
    assert child.data.metrics["inf"] != child.data.metrics["inf"]
    assert len(client.get_metric_history(child.info.run_id, "good")) == 1, "the same step twice is kept once"
    assert len(child.data.params["label"]) == 500


KILLED_FLOW = """
import os, signal, sys
from pathlib import Path
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageRequest
from tasks.runtime.tracking.tracker import Tracker
from tests.runtime.stages import CountConfig
tracker = Tracker(Home.open(Path(sys.argv[1])), "killed", uri=sys.argv[2])
tracked = tracker.stage(StageRequest("x", "node", CountConfig(), "killed")).__enter__()
assert tracker.run_id("node", wait_s=30)
tracked.on_event({"type": "metrics", "time": 1.0, "step": 1, "values": {"late": 5.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_runs_of_a_killed_flow_are_completed_and_closed_later(home: Home, client: MlflowClient, database: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    flow = subprocess.run(
        [sys.executable, "-c", KILLED_FLOW, str(home.root), database], cwd=REPOSITORY, env=environment, check=False
    )
    assert flow.returncode == -signal.SIGKILL
    assert recover(home) == ["killed"]
    assert recover(home) == []
    runs = client.search_runs(["0", *_experiments(client)], "tags.`alignflow.handle` LIKE 'killed/%'")
    assert {r.info.status for r in runs} == {"KILLED"}
    assert len(runs) == 2
    assert [r.data.metrics.get("late") for r in runs if r.info.run_name == "node"] == [5.0]


def _experiments(client: MlflowClient) -> list[str]:
    return [e.experiment_id for e in client.search_experiments()]


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_silent_tracker_neither_stops_nor_slows_a_stage(
    home: Home, runtime: Runtime, black_hole: str, count_request: Requests
) -> None:
    began = time.monotonic()
    tracker = Tracker(home, "into-the-void", uri=black_hole)
    outcome = _run(tracker, count_request(to=20), runtime)
    assert outcome.attempt == 1
    assert time.monotonic() - began < 5
    assert not tracker.finish("FINISHED", limit_s=1.0)
    assert time.monotonic() - began < 7


def test_what_a_dead_tracker_missed_is_sent_when_it_is_back(home: Home, client: MlflowClient, database: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        tracker = Tracker(home, "replayed", uri=f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with tracker.stage(StageRequest("x", "node", CountConfig(), "replayed")) as tracked:
            tracked.on_event({"type": "metrics", "time": 1.0, "step": 1, "values": {"kept": 7.0}})
        assert not tracker.finish("FINISHED", limit_s=30.0)
    folder = home.runs / "replayed" / "tracking"
    progress = tracker._journal.load_progress()
    assert progress is not None
    tracker._journal.save_progress(progress.model_copy(update={"uri": database}))  # the same tracker, back again
    (folder / "worker.json").unlink()  # the flow process has ended
    assert recover(home) == ["replayed"]
    (run,) = client.search_runs(_experiments(client), "tags.`alignflow.handle` = 'replayed/node'")
    assert (run.info.status, run.data.metrics["kept"]) == ("FINISHED", 7.0)


def test_a_model_is_registered_once_and_without_its_weights(
    tracker: Tracker, home: Home, client: MlflowClient, database: str, tmp_path: Path
) -> None:
    source = tracker.run_id(wait_s=20)
    assert source is not None
    first, second = model_ref(tmp_path, "a"), model_ref(tmp_path, "b")
    registered = [
        register_model(
            ref,
            name="aligned",
            home=home,
            source_run_id=source,
            lineage={"sft": "k", "grpo@kl_coef=0.0,seed=1": "g"},
            metrics={"score": 0.5},
            uri=database,
        )
        for ref in (first, first, second)
    ]
    assert [r.version for r in registered] == ["1", "1", "2"]
    assert [r.existed for r in registered] == [False, True, False]
    challenger = client.get_model_version_by_alias("aligned", "challenger")
    assert str(challenger.version) == "2"
    assert challenger.tags["artifact_uri"] == second.uri
    assert challenger.tags["lineage.sft"] == "k"
    assert challenger.tags["lineage.grpo:kl_coef:0.0:seed:1"] == "g"
    artifacts = Path(client.get_run(source).info.artifact_uri.removeprefix("file://")).parents[1]
    assert sum(p.stat().st_size for p in artifacts.rglob("*") if p.is_file()) < 100_000


def test_only_models_are_registered(home: Home, data_ref: ArtifactRef, database: str) -> None:
    with pytest.raises(ConfigError, match="kind 'data', expected 'model'"):
        register_model(data_ref, name="aligned", home=home, source_run_id=None, uri=database)
