"""What a stage says while it works: metrics, progress, waits and warnings, appended to `events.jsonl`.

The file comes first; trackers read from it, so a dead tracker never stops training. The log is a path and nothing
more, so it can be sent to any process; one process (rank 0) writes it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EventLog:
    """Append-only JSON lines at `path`; every line has `time` (unix seconds), `type` and the fields of that type."""

    path: Path

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Named numbers at a step. Non-finite values are kept, spelled "nan", "inf" or "-inf"."""
        self._append("metrics", step=step, values={k: _json_number(v) for k, v in values.items()})

    def progress(self, done: int, total: int, message: str = "") -> None:
        """How far the stage is: `done` of `total` units of its own choosing, with a line for people."""
        self._append("progress", done=done, total=total, message=message)

    def waiting(self, message: str) -> None:
        """What the stage waits for before it can go on, in words; said again now and then, so that it does not count as hung."""
        self._append("waiting", message=message)

    def warn(self, message: str) -> None:
        """Something a user should know that does not stop the stage."""
        self._append("warning", message=message)

    def warn_once(self, message: str) -> None:
        """As `warn`, unless this log says so already: for what is true of a whole run, and found by several of its parts."""
        if not (self.path.is_file() and json.dumps(message) in self.path.read_text(encoding="utf-8")):
            self.warn(message)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final facts of the stage (JSON values); they end up in `result.json` and on its tracker run."""
        self._append("summary", values=dict(values))

    def _append(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"time": time.time(), "type": kind, **fields}, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # One write of a whole line in append mode: readers never see half an event from a live writer.
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line)


def _json_number(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)
