"""How arms take turns: an arm reports each step, then waits for its next turn, so only one arm computes at a time.

Files in the arm's folder carry it, so that an arm may be one process or many. Only the standard library is used here:
the peer's environment imports this file too.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_S = 0.01


@dataclass(frozen=True)
class Turns:
    """The turns of one arm; `folder` is its own. Step 1 is taken without asking: it is the one that is dropped.

    An arm waits for as long as the process `runner_pid`, which grants turns, is there.
    """

    folder: Path
    runner_pid: int

    def report(self, step: int, **facts: Any) -> None:
        """The arm's side: `step` (from 1) is done; waits for the next turn. After the last one the runner ends the arm."""
        with (self.folder / "steps.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **facts}) + "\n")
        while not self._granted(step + 1).exists():
            if not Path(f"/proc/{self.runner_pid}").exists():
                os._exit(1)
            time.sleep(POLL_S)

    def grant(self, step: int) -> None:
        """The runner's side: the arm may take `step`."""
        self._granted(step).touch()

    def reported(self) -> list[dict[str, Any]]:
        """What the arm has said of its steps so far, in order."""
        path = self.folder / "steps.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _granted(self, step: int) -> Path:
        return self.folder / f"go-{step:04d}"
