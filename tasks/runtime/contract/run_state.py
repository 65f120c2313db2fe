"""How a flow run stands: one word, kept in `status.json` in its folder and said everywhere else too.

MLflow has one status for two of the words, so its runs carry the word as a tag beside it.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any, Literal

STATUS_FILE = "status.json"
CONFIG_FILE = "config.yaml"
TrackedStatus = Literal["FINISHED", "FAILED", "KILLED"]


class RunState(str, Enum):
    """`cancelled`: somebody ended the run; `crashed`: its process was gone before it could end."""

    running = "running"
    cancelling = "cancelling"
    finished = "finished"
    failed = "failed"
    cancelled = "cancelled"
    crashed = "crashed"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (RunState.running, RunState.cancelling)

    @property
    def when_dead(self) -> RunState:
        """The state of a run whose process is gone."""
        if self.is_over:
            return self
        return RunState.cancelled if self is RunState.cancelling else RunState.crashed

    @property
    def in_mlflow(self) -> TrackedStatus:
        """MLflow's status for a run that is over."""
        known: dict[RunState, TrackedStatus] = {RunState.finished: "FINISHED", RunState.failed: "FAILED"}
        return known.get(self, "KILLED")


def read_facts(folder: Path) -> dict[str, Any]:
    """What `status.json` in the run folder `folder` says; empty for a run that has not begun."""
    try:
        found: dict[str, Any] = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def state_of(folder: Path) -> RunState | None:
    """The state of the run in `folder`; None where it has none, or one of another version."""
    word = read_facts(folder).get("status")
    return RunState(word) if word in {state.value for state in RunState} else None


def began_at(folder: Path) -> float:
    """When the run in `folder` began, seconds since the epoch: its configuration is written then, and never again."""
    try:
        return (folder / CONFIG_FILE).stat().st_mtime
    except FileNotFoundError:
        return folder.stat().st_mtime
