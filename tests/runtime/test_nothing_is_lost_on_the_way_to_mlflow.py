"""Long lines, deleted experiments, a tracker that is away when a model is to be registered: later is late, and not never."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.register import RegisteredModel, carry_out_orders
from tasks.runtime.contract.failures import StageFailedError
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageRequest
from tasks.runtime.tracking.journal import Journal
from tasks.runtime.tracking.mlflow_sender import connect
from tasks.runtime.tracking.orders import Order, keep_order, waiting_orders
from tasks.runtime.tracking.tracker import Tracker, recover
from tests.runtime.conftest import REPOSITORY, model_ref
from tests.runtime.stages import CountConfig

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("size", [(1 << 20) - 100, 1 << 20, 3 << 20])
def test_a_line_of_any_length_is_read_whole_and_does_not_hold_up_the_next(tmp_path: Path, size: int) -> None:
    journal = Journal(tmp_path)
    for number in range(3):
        journal.append("tags", "", number=number, text="x" * size)
    seen, offset = [], 0
    while operations := journal.read(offset):
        seen += [operation["number"] for operation, _ in operations]
        offset = operations[-1][1]
    assert seen == [0, 1, 2]
    assert offset == (tmp_path / "journal.jsonl").stat().st_size


def test_a_torn_last_line_waits_for_its_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("tags", "", number=0)
    with (tmp_path / "journal.jsonl").open("a") as stream:
        stream.write('{"op": "tags", "run": "", "numb')
    ((operation, offset),) = journal.read(0)
    assert operation["number"] == 0
    with (tmp_path / "journal.jsonl").open("a") as stream:
        stream.write('er": 1}\n')
    assert [operation["number"] for operation, _ in journal.read(offset)] == [1]


MAKER = """
import sys
from pathlib import Path
from tasks.runtime.tracking.mlflow_database import make_database
print("making", flush=True)
make_database(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_makes_the_database_leaves_none_behind(tmp_path: Path) -> None:
    uri, part = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "mlflow.db.part"
    maker = subprocess.Popen([sys.executable, "-c", MAKER, uri, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    while not part.exists() or part.stat().st_size < 50_000:  # some tables are there
        assert maker.poll() is None
        time.sleep(0.001)
    maker.kill()
    maker.wait()
    assert not (tmp_path / "mlflow.db").exists()
    assert connect(uri, tmp_path).search_experiments()


def _run(home: Home, name: str, uri: str, experiment: str) -> Tracker:
    tracker = Tracker(home, name, uri=uri, experiment=experiment)
    with tracker.stage(StageRequest("x", "node", CountConfig(), name)) as tracked:
        assert tracker.run_id("node", wait_s=30)
        tracked.on_event({"type": "metrics", "time": 1.0, "step": 1, "values": {"kept": 7.0}})
    return tracker


def test_an_experiment_that_was_deleted_before_a_run_is_restored_for_it(home: Home, client: MlflowClient, database: str) -> None:
    made = client.create_experiment("deleted before")
    client.delete_experiment(made)
    assert _run(home, "after", database, "deleted before").finish("FINISHED")
    runs = client.search_runs([made])
    assert {run.info.run_name: run.info.status for run in runs} == {"after": "FINISHED", "node": "FINISHED"}


def test_an_experiment_that_is_deleted_during_a_run_loses_nothing_of_it(home: Home, client: MlflowClient, database: str) -> None:
    tracker = _run(home, "during", database, "deleted during")
    experiment = client.get_experiment_by_name("deleted during")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with tracker.stage(StageRequest("x", "second", CountConfig(), "during")) as tracked:
        tracked.on_event({"type": "metrics", "time": 1.0, "step": 1, "values": {"kept": 8.0}})
    assert tracker.finish("FINISHED")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == dict.fromkeys(("during", "node", "second"), "FINISHED")
    assert [runs[name].data.metrics["kept"] for name in ("node", "second")] == [7.0, 8.0]


def test_a_run_that_another_process_has_sent_is_not_sent_again(home: Home, client: MlflowClient, database: str) -> None:
    tracker = _run(home, "sent", database, "sent once")
    assert tracker.finish("FINISHED")
    (home.run("sent") / "tracking" / "worker.json").unlink()
    assert recover(home) == []


def _order(home: Home, run: str, letter: str, uri: str, decided: bool = True) -> Order:
    home.run(run)
    ref = model_ref(home.root, letter) if not (home.root / letter).exists() else None
    ref = ref or model_ref(home.run(run), letter)
    return Order(
        run=run, node="convert", name="ordered", uri=uri, source_run_id=None, ref=ref, lineage={}, metrics={}, decided=decided
    )


def test_what_could_not_be_registered_waits_and_is_registered_when_mlflow_is_back(
    home: Home, client: MlflowClient, database: str
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        keep_order(home, _order(home, "first", "a", away))
        assert isinstance(carry_out_orders(home)["first"], StageFailedError)
    (path,) = waiting_orders(home)
    order = Order.model_validate_json(path.read_text())
    keep_order(home, order.model_copy(update={"uri": database, "name": "waited"}))  # the same tracker, back again
    done = carry_out_orders(home)["first"]
    assert isinstance(done, RegisteredModel) and done.version == "1"
    assert waiting_orders(home) == []
    assert client.get_model_version_by_alias("waited", "challenger").tags["alignflow_key"] == "a" * 64


@pytest.mark.parametrize(("decided", "challenger"), [(False, "2"), (True, "1")])
def test_only_a_run_that_compared_anew_takes_the_alias_back_to_an_older_version(
    home: Home, client: MlflowClient, database: str, decided: bool, challenger: str
) -> None:
    name = f"older-{decided}"
    old, new = _order(home, "old", "c", database), _order(home, "new", "d", database)
    for order in (old, new, old.model_copy(update={"run": "again", "decided": decided})):
        home.run(order.run)
        keep_order(home, order.model_copy(update={"name": name}))
        done = carry_out_orders(home)[order.run]
        assert isinstance(done, RegisteredModel)
    assert (done.version, done.existed, done.is_challenger) == ("1", True, decided)
    assert str(client.get_model_version_by_alias(name, "challenger").version) == challenger


def test_a_name_with_dots_is_registered_as_it_is(home: Home, client: MlflowClient, database: str) -> None:
    keep_order(home, _order(home, "dots", "e", database).model_copy(update={"name": "llama-3.1"}))
    assert isinstance(carry_out_orders(home)["dots"], RegisteredModel)
    assert client.get_registered_model("llama-3.1").name == "llama-3.1"
