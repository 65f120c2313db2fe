"""The folder of one flow run, `runs/<run>/`: its configuration, how it went, where the time went, a copy of the report.

What each node produced is beside it, in `nodes/` (see `tasks.runtime.store.records`).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_processing.errors import ConfigError
from data_processing.wording import did_you_mean
from flows.settings.config import PipelineConfig
from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.liveness import announce, is_alive
from tasks.runtime.contract.run_state import CONFIG_FILE, STATUS_FILE, RunState, began_at, read_facts
from tasks.runtime.contract.spec import write_json
from tasks.runtime.store.base import ArtifactStore

REPORT_FILE = "report.html"
VERDICT_FILE = "verdict.json"
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class NodeTimes:
    """When a node began and ended (seconds since the epoch), and how long its stage worked (0 when cached)."""

    began: float
    ended: float
    work_s: float


class RunFolder:
    """Reads and writes the folder of run `name`."""

    def __init__(self, home: Home, name: str) -> None:
        self.name = name
        self.path = home.run(name)

    @property
    def report(self) -> Path:
        """The copy of the HTML report."""
        return self.path / REPORT_FILE

    def write_config(self, config: PipelineConfig) -> None:
        """Keep the resolved configuration; it can be given to `alignflow run --config`."""
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (self.path / CONFIG_FILE).write_text(text, encoding="utf-8")

    def begin(self, **facts: Any) -> None:
        """Say that this process runs it from now on."""
        announce(self.process_folder)
        self.write_status(RunState.running, **facts)

    @property
    def process_folder(self) -> Path:
        """Where the record of the run's process is, shared with its tracker."""
        return self.path / "tracking"

    @property
    def is_alive(self) -> bool:
        """Whether the process of this run lives, as far as can be known."""
        return is_alive(self.process_folder)

    def write_status(self, status: RunState, **facts: Any) -> None:
        """Keep how the run stands; facts given earlier stay."""
        write_json(self.path / STATUS_FILE, {**self.read_status(), "status": status.value, **facts, "at": time.time()})

    def note(self, **facts: Any) -> None:
        """Keep facts; how the run stands does not change."""
        write_json(self.path / STATUS_FILE, {**self.read_status(), **facts})

    def read_status(self) -> dict[str, Any]:
        """What `write_status` kept; empty for a run that has not begun."""
        return read_facts(self.path)

    def write_timings(self, began: float, ended: float, nodes: Mapping[str, NodeTimes]) -> None:
        """Keep where the time went. `overhead_s` is the time in which no stage worked although the run was under way."""
        values = {
            "total_s": ended - began,
            "work_s": sum(times.work_s for times in nodes.values()),
            "overhead_s": overhead_s(began, ended, nodes),
            "nodes": {
                name: {"wall_s": times.ended - times.began, "work_s": times.work_s, "began_after_s": times.began - began}
                for name, times in nodes.items()
            },
        }
        write_json(self.path / "timings.json", values)

    def keep_results(self, comparison: ArtifactRef, store: ArtifactStore) -> None:
        """Copy the verdict out of a comparison artifact and build this run's report: curves, lineage and timings are its own."""
        from evaluation.report.run import build_report

        verdict = store.fetch_file(comparison.kind, comparison.key, VERDICT_FILE)
        if verdict is None:
            raise ConfigError(f"run '{self.name}': its comparison is no longer in the store; {self.again}")
        shutil.copyfile(verdict, self.path / VERDICT_FILE)
        build_report(self.path, lambda ref, name: store.fetch_file(ref["kind"], ref["key"], name))

    @property
    def again(self) -> str:
        """The command that makes its results again."""
        return f"alignflow run --config {self.path / CONFIG_FILE}"

    def read_verdict(self) -> dict[str, Any] | None:
        """The content of the verdict, or None where the run did not get that far."""
        try:
            verdict: dict[str, Any] = json.loads((self.path / VERDICT_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return verdict


def overhead_s(began: float, ended: float, nodes: Mapping[str, NodeTimes]) -> float:
    """Seconds of the run outside its nodes, plus what each node took beyond its stage's own work."""
    covered, reach = 0.0, began
    for times in sorted(nodes.values(), key=lambda t: t.began):
        covered += max(0.0, times.ended - max(times.began, reach))
        reach = max(reach, times.ended)
    return (ended - began) - covered + sum(max(0.0, t.ended - t.began - t.work_s) for t in nodes.values())


def run_folders(home: Home) -> list[RunFolder]:
    """All runs of a home, the newest first."""
    began = sorted((folder for folder in home.runs.glob("*") if (folder / STATUS_FILE).is_file()), key=began_at, reverse=True)
    return [RunFolder(home, folder.name) for folder in began]


def find_run(home: Home, name: str) -> RunFolder:
    """The run called `name`, or the one whose name begins so, or the newest for `latest`.

    Raises `ConfigError` with the nearest names where there is none, or more than one.
    """
    folders = run_folders(home)
    known = [folder.name for folder in folders]
    if name == "latest" and folders:
        return folders[0]
    found = [folder for folder in folders if folder.name == name] or [f for f in folders if name and f.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"run: '{name}' begins the names of {len(found)} runs, among them {_some(f.name for f in found)}; give more of it"
        )
    raise ConfigError(
        f"run: got '{name}'; {did_you_mean(name, known)}runs in {home.runs}: {_some(known) or 'none yet'} (or 'latest', or how a name begins)"
    )


def _some(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:_NAMES_SHOWN])
