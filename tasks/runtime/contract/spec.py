"""What goes into a worker process and what comes out of it, as JSON files: `spec.json`, `result.json`, `error.json`.

No pickles: a spec can be read by people, kept, and run again anywhere the store can be reached.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.runtime.contract.context import ArtifactRef

SPEC_FILE = "spec.json"
RESULT_FILE = "result.json"
ERROR_FILE = "error.json"
EVENTS_FILE = "events.jsonl"
LOG_FILE = "log.txt"
STOP_FILE = "stopping"  # its presence asks the worker to end, wherever it runs


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Producer(BaseModel):
    """Who made an artifact: flow run, node of its graph, stage, attempt, git commit (where there is one)."""

    # Part of manifests, which are read by other versions than wrote them.
    model_config = ConfigDict(extra="ignore", frozen=True)

    run: str
    node: str
    stage: str
    attempt: int
    commit: str | None = None


class Spec(_Record):
    """Everything a worker needs. `stage` is a registered name or an import path `module:attribute`.

    `work` is the folder of the key (attempts, resume), `output` the staging folder that becomes the artifact,
    `first_attempt` the one that started from nothing: later ones resumed what it began, `secrets` the names of variables
    that must be set. `store` and `store_address` are what `tasks.runtime.store.places.open_store` takes.
    """

    stage: str
    key: str
    kind: str
    description: dict[str, Any]
    config: dict[str, Any]
    inputs: dict[str, ArtifactRef]
    seed: int
    attempt: int
    first_attempt: int
    token: str
    producer: Producer
    store: Path
    store_address: str | None = None
    work: Path
    output: Path
    resume: Path
    secrets: list[str] = []
    stall_after_s: float | None = None
    placement_timeout_s: float | None = None
    allowed_hosts: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of this attempt: spec, events, log, and the result or the error."""
        return attempt_folder(self.work, self.attempt)


class Result(_Record):
    """Written last by a worker that succeeded. `seconds` is the time of the stage's own work."""

    ref: ArtifactRef
    attempt: int
    seconds: float
    summary: dict[str, Any]


class Failure(_Record):
    """Written by a worker that did not succeed; `exit_code` as in `data_processing.errors`."""

    exit_code: int
    error: str
    message: str


def attempt_folder(work: Path, attempt: int) -> Path:
    """Where attempt number `attempt` of the key whose work folder is `work` keeps its files."""
    return work / f"a{attempt}"


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that readers see the old file or the whole new one, also after a crash of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, sort_keys=True, allow_nan=False)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


def write_record(path: Path, record: BaseModel) -> None:
    """`write_json` of a pydantic record."""
    write_json(path, record.model_dump(mode="json"))


def read_result(folder: Path) -> Result | None:
    """The result of the attempt in `folder`, or None where it left none."""
    text = _read(folder / RESULT_FILE)
    return Result.model_validate_json(text) if text else None


def read_failure(folder: Path) -> Failure | None:
    """The failure of the attempt in `folder`, or None where it left none (it succeeded, runs, or was killed)."""
    text = _read(folder / ERROR_FILE)
    return Failure.model_validate_json(text) if text else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
