"""What each node of a flow run was: `runs/<run>/nodes/<node>.json`. Read by reports, `plan` and `cache why`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageOutcome, StageRequest
from tasks.runtime.contract.spec import write_record
from tasks.runtime.keys.stage_key import StageKey


class NodeRecord(BaseModel):
    """A node of a flow run: the key it had, what was hashed for it, and, once it is done, its artifact."""

    # Homes outlive versions: what a newer one adds is passed over.
    model_config = ConfigDict(extra="ignore", frozen=True)

    node: str
    stage: str
    key: str
    description: dict[str, Any]
    ref: ArtifactRef | None = None
    cached: bool | None = None
    seconds: float | None = None
    attempt: int | None = None
    adopted: list[str] = []


def record_key(home: Home, request: StageRequest, key: StageKey) -> None:
    """Keep the key of a node that is about to start."""
    record = NodeRecord(node=request.node, stage=key.stage.name, key=key.key, description=key.description)
    write_node(home, request.run, record)


def record_outcome(home: Home, request: StageRequest, outcome: StageOutcome) -> None:
    """Add to a node's record what came out of it."""
    record = read_node(home, request.run, request.node)
    if record is None:
        return
    done = {
        "ref": outcome.ref,
        "cached": outcome.cached,
        "seconds": outcome.seconds,
        "attempt": outcome.attempt,
        "adopted": outcome.adopted,
    }
    write_node(home, request.run, record.model_copy(update=done))


def read_node(home: Home, run: str, node: str) -> NodeRecord | None:
    """The record of `node` in flow run `run`, or None."""
    try:
        text = (home.runs / run / "nodes" / f"{node}.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return NodeRecord.model_validate_json(text)


def write_node(home: Home, run: str, record: NodeRecord) -> None:
    """Keep what a node of flow run `run` is."""
    write_record(home.run(run) / "nodes" / f"{record.node}.json", record)
