"""Models that are to be registered: written down first, so that a tracker that is away fails no run. `tasks.register` carries them out.

Below the home, in `mlflow/to_register/`, one JSON file a run.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.run_state import began_at
from tasks.runtime.contract.spec import write_record


class Order(BaseModel):
    """A model to be registered, `ref` of node `node` of run `run`, as `name` with the tracker at `uri`.

    `source_run_id` is the tracker's id of that node's run, where it is known already. `decided`: the run has compared its models itself, so what it found best is the challenger now, whatever was before. A run that
    took its comparison from the cache says nothing new.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    node: str
    name: str
    uri: str
    source_run_id: str | None
    ref: ArtifactRef
    lineage: dict[str, str]
    metrics: dict[str, float]
    decided: bool


def keep_order(home: Home, order: Order) -> None:
    """Write the order down, for this run or a later command to carry out."""
    write_record(_folder(home) / f"{order.run}.json", order)


def waiting_orders(home: Home) -> list[Path]:
    """Files of the orders that were not carried out, in the order in which their runs began."""
    return sorted(_folder(home).glob("*.json"), key=lambda path: began_at(home.run(path.stem)))


def _folder(home: Home) -> Path:
    return home.mlflow / "to_register"
