"""From a journal to MLflow, through `MlflowClient` with explicit run ids.

The only module, with `mlflow_database` and `tasks.register`, that imports MLflow.
"""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tasks.runtime.tracking.journal import Journal, Progress
from tasks.runtime.tracking.mlflow_database import make_database

HANDLE_TAG = "alignflow.handle"
KEY_TAG = "alignflow.key"
CACHED_TAG = "alignflow.cached"

_METRICS_PER_CALL = 500
_PER_CALL = 90
_VALUE_LIMIT = 500
_PERMANENT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "PERMISSION_DENIED")
_LOG = logging.getLogger(__name__)


def bound_http() -> None:
    """Give up on a silent tracker after seconds; MLflow's own defaults retry for minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def connect(uri: str, mlflow_folder: Path) -> MlflowClient:
    """A client of the tracker at `uri`; a database of ours is made before it is used."""
    bound_http()
    make_database(uri, mlflow_folder)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def refusal_of(uri: str) -> str | None:
    """Why the tracker at `uri` does not let this user in, in one line; None where it does."""
    bound_http()
    try:
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except MlflowException as error:
        return str(error).splitlines()[0]
    return None


def experiment_id(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """The id of experiment `name`, created if missing, restored if deleted: MLflow gives its name to no other.

    `artifacts` is where a local tracker keeps files.
    """
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == LifecycleStage.DELETED:
        _LOG.warning("experiment '%s' had been deleted; it is restored, because a run is tracked in it", name)
        client.restore_experiment(found.experiment_id)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts.as_uri() if artifacts else None))
        except MlflowException:  # somebody else created it just now
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


class MlflowSender:
    """Sends what a journal holds, in order, each operation once. Raises while the tracker does not answer."""

    def __init__(self, journal: Journal, progress: Progress, mlflow_folder: Path) -> None:
        self.progress = progress
        self._journal = journal
        self._mlflow_folder = mlflow_folder
        self._client: MlflowClient | None = None
        self._experiment_id = ""

    def send_waiting(self) -> None:
        """Send until the journal has no more; progress is kept after every call to the tracker."""
        while operations := self._journal.read(self.progress.sent_bytes):
            client = self._connected()
            while operations:
                count = _same_run_metrics(operations)
                batch, operations = operations[:count], operations[count:]
                self._send(client, [operation for operation, _ in batch])
                self.progress.sent_bytes = batch[-1][1]
                self._journal.save_progress(self.progress)

    def _connected(self) -> MlflowClient:
        if self._client is None:
            client = connect(self.progress.uri, self._mlflow_folder)
            self._find_experiment(client)
            self._client = client
        return self._client

    def _find_experiment(self, client: MlflowClient) -> None:
        local = self._mlflow_folder / "artifacts" if self.progress.uri.startswith("sqlite:") else None
        self._experiment_id = experiment_id(client, self.progress.experiment, local)

    def _send(self, client: MlflowClient, batch: list[dict[str, Any]]) -> None:
        """Send a batch; what MLflow will never take is logged and passed over, unless the experiment was deleted meanwhile."""
        if (refusal := self._refusal(client, batch)) and self._has_lost_its_experiment(client):
            self._find_experiment(client)
            refusal = self._refusal(client, batch)
        if refusal:
            _LOG.warning("MLflow refused %s of run '%s': %s", batch[0]["op"], batch[0]["run"], refusal)

    def _refusal(self, client: MlflowClient, batch: list[dict[str, Any]]) -> MlflowException | None:
        first = batch[0]
        try:
            if first["op"] == "open":
                self._open(client, first)
            elif (run_id := self.progress.run_ids.get(first["run"])) and first["op"] != "torn":
                getattr(self, f"_{first['op']}")(client, run_id, batch)
        except MlflowException as error:
            if error.error_code not in _PERMANENT:
                raise
            return error
        return None

    def _has_lost_its_experiment(self, client: MlflowClient) -> bool:
        found = client.get_experiment_by_name(self.progress.experiment)
        return found is None or found.lifecycle_stage == LifecycleStage.DELETED or found.experiment_id != self._experiment_id

    def _open(self, client: MlflowClient, operation: dict[str, Any]) -> None:
        handle = operation["handle"]
        found = client.search_runs([self._experiment_id], f"tags.`{HANDLE_TAG}` = '{handle}'", max_results=1)
        if found:  # created before a crash that forgot to note it, or by an earlier start of the same flow run
            self.progress.run_ids[operation["run"]] = found[0].info.run_id
            client.update_run(found[0].info.run_id, status="RUNNING")
            return
        tags = {HANDLE_TAG: handle, **operation["tags"]}
        if parent := self.progress.run_ids.get("") if operation["run"] else None:
            tags["mlflow.parentRunId"] = parent
        run = client.create_run(self._experiment_id, operation["time"], _clean(tags), operation["name"])
        self.progress.run_ids[operation["run"]] = run.info.run_id
        params = [Param(name, value) for name, value in _clean(operation["params"]).items()]
        for start in range(0, len(params), _PER_CALL):
            client.log_batch(run.info.run_id, params=params[start : start + _PER_CALL])

    def _metrics(self, client: MlflowClient, run_id: str, batch: list[dict[str, Any]]) -> None:
        metrics = [
            Metric(_name(name), _finite(value), operation["time"], operation["step"])
            for operation in batch
            for name, value in operation["values"].items()
        ]
        for start in range(0, len(metrics), _METRICS_PER_CALL):
            client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_CALL])

    def _tags(self, client: MlflowClient, run_id: str, batch: list[dict[str, Any]]) -> None:
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in _clean(batch[0]["tags"]).items()])

    def _dataset(self, client: MlflowClient, run_id: str, batch: list[dict[str, Any]]) -> None:
        ref = batch[0]["ref"]
        source = json.dumps({"uri": ref["uri"], "sha256": ref["sha256"]})
        dataset = Dataset(name=f"{ref['kind']}-{ref['key'][:12]}", digest=ref["sha256"][:32], source_type="local", source=source)
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", batch[0]["input"])])])

    def _file(self, client: MlflowClient, run_id: str, batch: list[dict[str, Any]]) -> None:
        path = Path(batch[0]["path"])
        if path.is_file():
            client.log_artifact(run_id, str(path))

    def _link(self, client: MlflowClient, run_id: str, batch: list[dict[str, Any]]) -> None:
        """Point a cached run at the one that did the work."""
        wanted = f"tags.`{KEY_TAG}` = '{batch[0]['key']}' AND tags.`{CACHED_TAG}` = 'false'"
        found = client.search_runs([self._experiment_id], wanted, max_results=1)
        if found:
            client.set_tag(run_id, "alignflow.producing_run_id", found[0].info.run_id)

    def _close(self, client: MlflowClient, run_id: str, batch: list[dict[str, Any]]) -> None:
        client.set_terminated(run_id, batch[0]["status"], batch[0]["time"])


def _same_run_metrics(operations: list[tuple[dict[str, Any], int]]) -> int:
    """How many of the first operations go out together: metrics of one run, else one operation."""
    first = operations[0][0]
    if first["op"] != "metrics":
        return 1
    count = 0
    for operation, _ in operations[:_METRICS_PER_CALL]:
        if (operation["op"], operation["run"]) != ("metrics", first["run"]):
            break
        count += 1
    return count


def _clean(values: dict[str, Any]) -> dict[str, str]:
    return {_name(name): str(value)[:_VALUE_LIMIT] for name, value in values.items()}


def _name(name: str) -> str:
    return re.sub(r"[^\w\-. /:]", "_", name)[:250]


def _finite(value: float | str) -> float:
    """MLflow alters infinities silently; here they are NaN there. The journal and events.jsonl keep what they were."""
    number = float(value)
    return number if abs(number) != float("inf") else float("nan")
