"""Runs that have nothing to do start no Prefect server: what it should show of them is kept until one is up.

Below the home, in `prefect/unshown/`, one JSON file a run. `show_waiting` is called wherever a server answers; it also tells how
runs ended (`told_later`).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, JsonValue

from flows.services.told_later import tell_ends, waiting_ends
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageObserver, StageRequest, Together
from tasks.runtime.contract.spec import write_record
from tasks.runtime.execution.start import Runtime, run_stage
from tasks.runtime.tracking.tracker import Tracker

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_FLOW = "align"
_LOG = logging.getLogger(__name__)


class NodeToShow(BaseModel):
    """A node that was cached: who made it, in words, and the nodes that it is made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    message: str
    upstream: list[str]


class RunToShow(BaseModel):
    """A run that no server has seen: `error` is why it failed, None where it did not; `began` is when, for people."""

    model_config = ConfigDict(extra="forbid")

    name: str
    began: str
    parameters: dict[str, JsonValue]
    tags: list[str] = []
    nodes: list[NodeToShow] = []
    verdict: str | None = None
    error: str | None = None


class ShownLater:
    """The `Display` of a run that is shown later; `keep` writes down what there is to show."""

    def __init__(self, parameters: Mapping[str, JsonValue]) -> None:
        self.run_id = str(uuid.uuid4())
        self._run = RunToShow(name="", began=time.strftime("%Y-%m-%d %H:%M:%S"), parameters=dict(parameters))

    async def begin(self, run: str, tags: Sequence[str]) -> None:
        """Remembered."""
        self._run.name, self._run.tags = run, list(tags)

    async def node(
        self,
        request: StageRequest,
        runtime: Runtime,
        tracker: Tracker,
        upstream: Mapping[str, dict[str, Any]],
        observer: StageObserver,
    ) -> dict[str, Any]:
        """The node, told to the tracker and remembered for Prefect."""
        with tracker.stage(request) as tracked:
            outcome = await run_stage(request, runtime, Together(tracked, observer))
            tracked.done(outcome)
        made_from = list(dict.fromkeys(answer["node"] for answer in upstream.values()))
        self._run.nodes.append(NodeToShow(name=request.node, message=outcome.origin, upstream=made_from))
        return outcome.to_json()

    @property
    def page(self) -> None:
        """No server has seen this run yet."""
        return None

    @property
    def server(self) -> None:
        """Nor is there one to be told how it ended."""
        return None

    async def links(self, text: str, run: str) -> None:
        """The verdict has them too, and that is what is shown later."""

    async def verdict(self, text: str, run: str) -> None:
        """Remembered too."""
        self._run.verdict = text

    def keep(self, home: Home, error: Exception | None = None) -> None:
        """Write it down for the next server; `error` is why the run failed."""
        self._run.error = str(error) if error else None
        write_record(_folder(home) / f"{time.time_ns()}.json", self._run)


def waits(home: Home) -> bool:
    """Whether there is anything to show or to tell."""
    return any(_folder(home).glob("*.json")) or bool(waiting_ends(home))


def show_waiting(home: Home) -> None:
    """Show and tell what was kept to the server that this process talks to. Never raises: what it does not take is kept on."""
    if not waits(home):
        return
    try:
        from prefect import get_client

        _folder(home).mkdir(parents=True, exist_ok=True)
        with FileLock(_folder(home) / "lock"), get_client(sync_client=True) as client:
            tell_ends(home, client)
            for path in sorted(_folder(home).glob("*.json")):
                _show(client, RunToShow.model_validate_json(path.read_text(encoding="utf-8")))
                path.unlink()
    except Exception as error:  # whatever a server does, the run that is over is over
        _LOG.warning("Prefect was not told of earlier runs (kept for later): %s", error)


def _show(client: SyncPrefectClient, run: RunToShow) -> None:
    """A flow run with its task runs. The server dates states itself, so the time of the run stands in the message."""
    from prefect import Flow
    from prefect.client.schemas.actions import ArtifactCreate
    from prefect.client.schemas.objects import State, TaskRunResult
    from prefect.states import Completed, Failed, Running

    from tasks.runtime.execution.prefect_task import stage_task

    # Known to the server by its name alone.
    align: Flow[..., None] = Flow(lambda **parameters: None, name=_FLOW)
    flow_run = client.create_flow_run(align, name=run.name or None, parameters=run.parameters, tags=run.tags, state=Running())
    ids: dict[str, uuid.UUID] = {}
    for node in run.nodes:
        inputs = {"upstream": [TaskRunResult(id=ids[name]) for name in node.upstream]}
        task_run = client.create_task_run(stage_task, flow_run.id, node.name, name=node.name, task_inputs=inputs)  # type: ignore[arg-type]
        client.set_task_run_state(task_run.id, Completed(name="Cached", message=node.message), force=True)
        ids[node.name] = task_run.id
    if run.verdict:
        description = f"Verdict of {run.name}"
        artifact = ArtifactCreate(
            key="verdict", type="markdown", data=run.verdict, description=description, flow_run_id=flow_run.id
        )
        client.create_artifact(artifact)
    how = f"everything was cached; ran at {run.began}, before there was a server"
    failed: State[Any] = Failed(message=f"{run.error} (ran at {run.began})")
    client.set_flow_run_state(flow_run.id, failed if run.error else Completed(message=how), force=True)


def _folder(home: Home) -> Path:
    return home.prefect / "unshown"
