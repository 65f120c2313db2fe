"""What a flow run wants its tracker to know, on disk first: one JSON line an operation, and how far the tracker has got.

So a tracker that is down stops nothing: what it missed waits here and is sent when it answers, by this process or by a
later one. Runs are named by handles (a node's name, "" for the flow run itself); the tracker's own ids come later.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.runtime.contract.spec import write_record

_LOG = logging.getLogger(__name__)


class Progress(BaseModel):
    """How far a tracker has got: bytes of the journal sent, the tracker's run ids by handle.

    `complete`: every run is closed and everything was sent; nobody needs to look again.
    """

    model_config = ConfigDict(extra="forbid")

    uri: str
    experiment: str
    sent_bytes: int = 0
    run_ids: dict[str, str] = {}
    complete: bool = False


class Journal:
    """The operations of one flow run, in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._path = folder / "journal.jsonl"
        self._lock = threading.Lock()

    def append(self, op: str, run: str, **fields: Any) -> None:
        """Add an operation on run `run`; one write of a whole line. A full disk loses it and is logged, no more."""
        line = json.dumps({"op": op, "run": run, **fields}, default=str) + "\n"
        try:
            with self._lock, self._path.open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as error:
            _LOG.warning("%s: cannot keep '%s' for the tracker: %s", self._path, op, error)

    def read(self, offset: int, limit_bytes: int = 1 << 20) -> list[tuple[dict[str, Any], int]]:
        """Operations from byte `offset` on, each with the offset behind it: about `limit_bytes`, the last one whole."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(offset)
                lines = (stream.read(limit_bytes) + stream.readline()).split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        operations = []
        for line in lines:
            offset += len(line) + 1
            operations.append((_parse(line), offset))
        return operations

    def open_runs(self) -> list[str]:
        """Handles that were opened and not closed, the latest first, so that children come before their parent."""
        handles: dict[str, None] = {}
        for operation, _ in self.read(0, limit_bytes=-1):
            if operation["op"] == "open":
                handles[operation["run"]] = None
            elif operation["op"] == "close":
                handles.pop(operation["run"], None)
        return list(reversed(handles))

    def load_progress(self) -> Progress | None:
        """What was sent so far; None before the first operation."""
        try:
            return Progress.model_validate_json((self.folder / "progress.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def save_progress(self, progress: Progress) -> None:
        """Remember what was sent."""
        write_record(self.folder / "progress.json", progress)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        operation: dict[str, Any] = json.loads(line)
    except ValueError:  # torn by a killed writer: nothing to send
        return {"op": "torn", "run": ""}
    return operation
