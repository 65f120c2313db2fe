"""A home of its own, runs in it, what they leave; everything is found by the home that stands in its environment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
_PIPELINE = """
extends: tiny
run: {{name: faults, registered_model: null}}
pipeline:
  sft: null
  reward_model: null
  preference: null
  online: null
  base: {{stage: base_model, evaluate: false}}
  trained: {{stage: "tests.faults.fault_stages:TRAIN", set: {{actor: {actor}, opened_by: {opened_by}}}}}
  read: {{stage: "tests.faults.fault_stages:READ"}}
runtime: {{min_free_disk_gib: 0, preemption_wait_s: 1, stop_grace_s: 10}}
"""
_LIMIT_S = 240.0


class Bench:
    """One home. `run` starts `alignflow run` on the two stages of `fault_stages`."""

    def __init__(self, home: Path, *, actor: bool = False, held: bool = False) -> None:
        self.home = home
        self._key = home.parent / "key"
        self._pipeline = home.parent / "faults.yaml"
        opened_by = self._key if held else "null"
        self._pipeline.write_text(_PIPELINE.format(actor=str(actor).lower(), opened_by=opened_by))

    def run(self, *before: str, **variables: str) -> subprocess.Popen[bytes]:
        """A run, in a session of its own; `before` are words of a command that starts it."""
        # What a shell starts in the background ignores Ctrl-C, and so does all that comes of it.
        hearing = ["env", "--default-signal=INT"]
        command = [*hearing, *before, sys.executable, "-m", "flows.cli", "run", "--preset", str(self._pipeline)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PREFECT_", "MLFLOW_"))}
        environment |= {"ALIGNFLOW_HOME": str(self.home), "PYTHONPATH": str(REPOSITORY), **variables}
        with (self.home.parent / "runs.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.home.parent, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def log(self) -> str:
        """What all runs printed."""
        return (self.home.parent / "runs.log").read_text(errors="replace")

    def open(self) -> None:
        """Let a stage that is held do its last step."""
        self._key.touch()

    def until_step(self, step: int) -> None:
        """Return when a stage says that it has done `step` steps."""
        wait_for(lambda: any(done >= step for done in self.steps()), f"step {step}", self.log)

    def steps(self) -> list[int]:
        """All steps that were done, in order of time, over all attempts."""
        events = [
            json.loads(line)
            for path in self.home.glob("work/train-*/a*/events.jsonl")
            for line in path.read_text().splitlines()
            if line.endswith("}")
        ]
        return [event["done"] for event in sorted(events, key=lambda e: e["time"]) if event["type"] == "progress"]

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this home: runs, their servers, workers, actors."""
        return [process for process in psutil.process_iter() if _home_of(process) == str(self.home)]

    def named(self, *words: str) -> list[psutil.Process]:
        """Those with all `words` in their command lines."""
        return [p for p in self.processes() if all(word in " ".join(_command(p)) for word in words)]

    def states(self) -> list[str]:
        """How the runs ended, oldest first, by their folders."""
        found = sorted(self.home.glob("runs/*/status.json"), key=lambda path: path.parent.name)
        return [json.loads(path.read_text())["status"] for path in found]

    def published(self) -> list[dict[str, Any]]:
        """The manifests of what the stage TRAIN published."""
        return [json.loads(path.read_text()) for path in self.home.glob("store/numbers/*/manifest.json")]


def wait_for(condition: Callable[[], bool], what: str, log: Callable[[], str], limit_s: float = _LIMIT_S) -> None:
    """Return when `condition` holds; `AssertionError` with the end of the log after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}:\n{log()[-6000:]}"
        time.sleep(0.1)


@contextmanager
def bench(*, actor: bool = False, held: bool = False) -> Iterator[Bench]:
    """A bench in a short folder, since sockets live below it; everything of it is ended at the end.

    Where it is `held`, no stage comes to its end before `open` is called.
    """
    folder = Path(tempfile.mkdtemp(prefix="aff", dir="/tmp"))
    made = Bench(folder / "h", actor=actor, held=held)
    try:
        yield made
    finally:
        for process in made.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        subprocess.run(["umount", "-q", str(made.home)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _home_of(process: psutil.Process) -> str | None:
    try:
        environment: Mapping[str, str] = process.environ()
    except (psutil.Error, OSError):
        return None
    return environment.get("ALIGNFLOW_HOME")


def _command(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return words
