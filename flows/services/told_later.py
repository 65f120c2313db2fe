"""How runs ended that Prefect did not see end, or sees as something else: kept in the home, told to the server that knows them.

Below the home, in `prefect/untold/`, one JSON file a flow run. Prefect calls a flow run Crashed that was interrupted, and leaves
one Running whose process was killed; here each gets the state that `status.json` has.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from flows.services.run_processes import is_ours
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.run_state import RunState
from tasks.runtime.contract.spec import write_record

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import State

OWN = "own"
_LOG = logging.getLogger(__name__)


class UntoldEnd(BaseModel):
    """How the flow run `flow_run` ended. `server` knows it: the address of one, or `OWN` for any of this home's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flow_run: UUID
    server: str
    state: RunState
    message: str


def server_name(home: Home, url: str | None) -> str:
    """What is kept of a server's address: those that alignflow starts share a database, and come and go on other ports."""
    return OWN if not url or is_ours(home, url) else url


def tell_later(home: Home, end: UntoldEnd) -> None:
    """Keep it for the server; what was kept of the same run is replaced."""
    write_record(_folder(home) / f"{end.flow_run}.json", end)


def waiting_ends(home: Home) -> list[Path]:
    """Files of what no server has been told yet."""
    return sorted(_folder(home).glob("*.json"))


def tell_ends(home: Home, client: SyncPrefectClient) -> None:
    """Tell the client's server what concerns it; raises what the client does, and keeps what was not told."""
    here = server_name(home, os.environ.get("PREFECT_API_URL"))
    for path in waiting_ends(home):
        end = UntoldEnd.model_validate_json(path.read_text(encoding="utf-8"))
        if end.server == here:
            _tell(client, end)
            path.unlink(missing_ok=True)


def _tell(client: SyncPrefectClient, end: UntoldEnd) -> None:
    """The flow run, unless the server has an end of its own for it that is no crash, and its tasks that have none.

    How those ended of a run that failed is not known here.
    """
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    state = _state(end)
    try:
        flow_run = client.read_flow_run(end.flow_run)
    except ObjectNotFound:
        _LOG.info("Prefect does not know flow run %s any more", end.flow_run)
        return
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[end.flow_run]))
    for task_run in client.read_task_runs(flow_run_filter=wanted):
        if _is_open(task_run.state):
            unknown: State[Any] = Crashed(message="this server was away when it ended")
            client.set_task_run_state(task_run.id, unknown if end.state is RunState.failed else state, force=True)
    # One that has finished and could not say so, its server being away, has failed in Prefect's eyes.
    if _is_open(flow_run.state) or end.state is RunState.finished:
        client.set_flow_run_state(end.flow_run, state, force=True)


def _is_open(state: State[Any] | None) -> bool:
    """A crash is what Prefect takes every interruption for."""
    return state is None or not state.is_final() or state.is_crashed()


def _state(end: UntoldEnd) -> State[Any]:
    from prefect.states import Cancelled, Completed, Crashed, Failed

    words = {RunState.finished: Completed, RunState.failed: Failed, RunState.cancelled: Cancelled}
    return words.get(end.state, Crashed)(message=end.message)


def _folder(home: Home) -> Path:
    return home.prefect / "untold"
