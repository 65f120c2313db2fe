"""Tracking of flow runs: one parent run a flow run, one child run a stage. Never raises, never waits for the tracker.

Everything is written to the flow run's journal; a thread sends it to MLflow in batches. `Tracker.finish` waits a bounded
time; what is left is sent by `recover`, which also closes the runs of processes that were killed.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock, Timeout

from tasks.runtime.contract.home import Home
from tasks.runtime.contract.liveness import announce, beat, is_alive, retire
from tasks.runtime.contract.request import SilentObserver, StageOutcome, StageRequest
from tasks.runtime.contract.run_state import RunState, TrackedStatus, state_of
from tasks.runtime.keys.stage_key import flatten
from tasks.runtime.tracking.background import deliver_in_background
from tasks.runtime.tracking.journal import Journal, Progress

STATE_TAG = "alignflow.state"

_SEND_EVERY_S = 1.0
_AGE_EVERY_S = 30.0
_LONGEST_PAUSE_S = 30.0
_FINISH_LIMIT_S = 15.0
_LOG = logging.getLogger(__name__)


class Tracker:
    """The tracker's view of one flow run. `params` and `tags` describe the flow run itself.

    `later`: for a run that will be over in a moment. Nothing is sent while it goes on, unless an id is asked for;
    `finish` leaves the sending to a process of its own.
    """

    def __init__(
        self,
        home: Home,
        run: str,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        uri: str | None = None,
        experiment: str = "alignflow",
        later: bool = False,
    ) -> None:
        self._home = home
        self._run = run
        self._journal = Journal(home.run(run) / "tracking")
        announce(self._journal.folder)
        progress = self._journal.load_progress() or Progress(uri=uri or home.tracking_uri, experiment=experiment)
        progress.complete = False
        self._journal.save_progress(progress)
        self._children: dict[str, StageTracker] = {}
        self._thread = _SenderThread(self._journal, progress, home.mlflow, self._report_ages)
        self._open("", run, params or {}, tags or {})
        if not later:
            self._thread.start()

    def stage(self, request: StageRequest) -> StageTracker:
        """A child run for one node; use it as a context manager and pass it to `run_stage` as observer."""
        return StageTracker(self, request)

    def log_file(self, path: Path) -> None:
        """Attach a copy of a small file, for example a report, to the flow run."""
        self._journal.append("file", "", path=str(path))

    def tag(self, tags: Mapping[str, Any]) -> None:
        """Add tags to the flow run."""
        self._journal.append("tags", "", tags=dict(tags))

    def metrics(self, values: Mapping[str, float]) -> None:
        """Add metrics to the flow run, so that flow runs can be compared by them."""
        if values:
            self._journal.append("metrics", "", step=0, values=dict(values), time=_now_ms())

    def run_id(self, node: str = "", *, wait_s: float = 0.0) -> str | None:
        """MLflow's id of the flow run or of a node's run, once it is known; waits up to `wait_s` seconds for it."""
        if self._thread.ident is None:
            self._thread.start()
        deadline = time.monotonic() + wait_s
        while (found := self._thread.progress.run_ids.get(node)) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    @property
    def uri(self) -> str:
        """The tracker's address, as given."""
        return self._thread.progress.uri

    @property
    def server(self) -> str | None:
        """The address of the tracker's pages, without a password; None for a database, which has none."""
        parts = urlsplit(self._thread.progress.uri)
        if parts.scheme not in ("http", "https"):
            return None
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))

    @property
    def page(self) -> str | None:
        """The page of the flow run's run on that server, once the run is known there."""
        run_id = self._thread.progress.run_ids.get("")
        return f"{self.server}/#/runs/{run_id}" if self.server and run_id else None

    def finish(self, status: TrackedStatus, limit_s: float = _FINISH_LIMIT_S) -> bool:
        """Close the run and what is still open below it; returns whether the tracker has received everything."""
        for handle in self._journal.open_runs():
            self._journal.append("close", handle, status=status, time=_now_ms())
        if self._thread.ident is not None:
            return self._thread.finish(limit_s)
        retire(self._journal.folder)
        with suppress(OSError):  # no process to be had: a later run sends it
            deliver_in_background(self._home)
        return False

    def _open(self, handle: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        fields = {
            "handle": f"{self._run}/{handle}",
            "name": name,
            "params": flatten(params),
            "tags": dict(tags),
            "time": _now_ms(),
        }
        self._journal.append("open", handle, **fields)

    def _report_ages(self) -> None:
        for child in list(self._children.values()):
            child.report_age()


class StageTracker(SilentObserver):
    """A node's child run: hears what the stage does, and ends FINISHED, FAILED or KILLED with its `with` block."""

    def __init__(self, tracker: Tracker, request: StageRequest) -> None:
        self._tracker = tracker
        self._journal = tracker._journal
        self._request = request
        self._node = request.node
        self._sent: set[tuple[str, int]] = set()
        self._began = self._last_event = time.time()

    def __enter__(self) -> StageTracker:
        request = self._request
        tags = {"alignflow.stage": request.stage, "alignflow.node": request.node, "alignflow.run": request.run}
        tags |= {f"alignflow.input.{name}": f"{ref.kind}/{ref.key}" for name, ref in request.inputs.items()}
        params = {**request.config.model_dump(mode="json"), "seed": request.seed}
        self._tracker._open(self._node, self._node, params, tags)
        for name, ref in request.inputs.items():
            if ref.kind == "data":
                self._journal.append("dataset", self._node, input=name, ref=ref.model_dump())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tracker._children.pop(self._node, None)
        status: TrackedStatus = "FINISHED"
        if error is not None:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            self._tag({"alignflow.error": f"{type(error).__name__}: {error}"})
        self._journal.append("close", self._node, status=status, time=_now_ms())

    def done(self, outcome: StageOutcome) -> None:
        """Say what came out of the stage; a cached one points at the run that did the work."""
        self._tag(
            {
                "alignflow.cached": str(outcome.cached).lower(),
                "alignflow.producer": outcome.producer,
                "alignflow.attempt": outcome.attempt,
                "alignflow.artifact": outcome.ref.uri,
                "alignflow.artifact_sha256": outcome.ref.sha256,
            }
        )
        numbers = {k: v for k, v in flatten(outcome.summary).items() if isinstance(v, (int, float))}
        self._metrics(0, {"stage_seconds": outcome.seconds, **{f"summary/{k}": v for k, v in numbers.items()}}, time.time())
        if outcome.cached:
            self._journal.append("link", self._node, key=outcome.ref.key)

    def on_key(self, key: str, description: dict[str, Any]) -> None:
        """Tag the key and the versions behind it."""
        self._tag({"alignflow.key": key, **{f"alignflow.version.{k}": v for k, v in description["libraries"].items()}})

    def on_attempt(self, attempt: int, folder: Path, attached: bool) -> None:
        """Tag the attempt; from here on the age of the last event is a metric."""
        self._tracker._children[self._node] = self
        self._tag({"alignflow.attempt": attempt, "alignflow.attempt_folder": folder})

    def on_event(self, event: dict[str, Any]) -> None:
        """Metrics go to the tracker, a step once: a resumed attempt repeats steps."""
        self._last_event = event["time"]
        if event["type"] == "metrics":
            step = int(event["step"])
            new = {name: value for name, value in event["values"].items() if (name, step) not in self._sent}
            self._sent.update((name, step) for name in new)
            self._metrics(step, new, event["time"])

    def on_warning(self, message: str) -> None:
        """Keep the runtime's last warning as a tag."""
        self._tag({"alignflow.warning": message})

    def report_age(self) -> None:
        """How long the stage has been silent, as a metric over the seconds since it began."""
        now = time.time()
        self._metrics(int(now - self._began), {"runtime/last_event_age_s": now - self._last_event}, now)

    def _metrics(self, step: int, values: Mapping[str, Any], time_s: float) -> None:
        if values:
            self._journal.append("metrics", self._node, step=step, values=dict(values), time=int(time_s * 1000))

    def _tag(self, tags: Mapping[str, Any]) -> None:
        self._journal.append("tags", self._node, tags={name: str(value) for name, value in tags.items()})


def recover(home: Home) -> list[str]:
    """Close the runs of flow processes that died and send what trackers missed; returns the flow runs it worked on.

    Never raises; a tracker that is still away is left for later.
    """
    worked_on: list[str] = []
    silent: set[str] = set()
    for journal, found in _unsent(home):
        if found.uri in silent:
            continue
        with suppress(Timeout), FileLock(journal.folder / "lock", timeout=0):
            progress = journal.load_progress()  # another process may have sent it meanwhile
            if progress is None or progress.complete:
                continue
            _close_open_runs(journal)
            worked_on.append(journal.folder.parent.name)
            if not _complete(journal, progress, home.mlflow):
                silent.add(progress.uri)
    return worked_on


def is_anything_unsent(home: Home) -> bool:
    """Whether `recover` would have something to do."""
    return next(_unsent(home), None) is not None


def _unsent(home: Home) -> Iterator[tuple[Journal, Progress]]:
    """Journals of flow processes that are gone, of which the tracker has not received everything."""
    for folder in sorted(home.runs.glob("*/tracking")):
        journal = Journal(folder)
        progress = journal.load_progress()
        if progress and not progress.complete and not is_alive(folder):
            yield journal, progress


def _close_open_runs(journal: Journal) -> None:
    """What a process left open ends with it; the flow run itself as its `status.json` says, nodes as killed."""
    state = state_of(journal.folder.parent) or RunState.crashed
    for handle in journal.open_runs():
        if not handle:
            journal.append("tags", "", tags={STATE_TAG: state.when_dead.value})
        status = "KILLED" if handle else state.when_dead.in_mlflow
        journal.append("close", handle, status=status, time=_now_ms())


class _SenderThread(threading.Thread):
    """Sends a journal until told to finish; pauses longer and longer while the tracker does not answer."""

    def __init__(self, journal: Journal, progress: Progress, mlflow_folder: Path, report_ages: Any) -> None:
        super().__init__(name="tracking", daemon=True)
        self.progress = progress
        self._journal = journal
        self._mlflow_folder = mlflow_folder
        self._report_ages = report_ages
        self._closing = threading.Event()
        self._all_sent = False

    def run(self) -> None:
        pause_s = 0.0
        next_age = time.monotonic() + _AGE_EVERY_S
        sender: Any = None
        with FileLock(self._journal.folder / "lock"):
            while True:
                closing = self._closing.wait(pause_s)
                if time.monotonic() > next_age:
                    next_age += _AGE_EVERY_S
                    self._report_ages()
                beat(self._journal.folder)
                try:
                    sender = sender or _make_sender(self._journal, self.progress, self._mlflow_folder)
                    sender.send_waiting()
                    pause_s = _SEND_EVERY_S
                    self._all_sent = self.progress.complete = closing
                    if closing:
                        self._journal.save_progress(self.progress)
                except Exception as error:  # whatever a tracker does, the flow goes on
                    _LOG.warning("tracker %s does not take anything (kept for later): %s", self.progress.uri, _first_line(error))
                    pause_s = min(max(2 * pause_s, _SEND_EVERY_S), _LONGEST_PAUSE_S)
                if closing:
                    return

    def finish(self, limit_s: float) -> bool:
        self._closing.set()
        self.join(limit_s)
        if not self._all_sent:
            _LOG.warning("tracker %s missed a part of this run; the next command sends it", self.progress.uri)
        return self._all_sent


def _complete(journal: Journal, progress: Progress, mlflow_folder: Path) -> bool:
    try:
        _make_sender(journal, progress, mlflow_folder).send_waiting()
    except Exception as error:  # as above
        _LOG.warning("tracker %s still does not answer: %s", progress.uri, _first_line(error))
        return False
    progress.complete = True
    journal.save_progress(progress)
    return True


def _make_sender(journal: Journal, progress: Progress, mlflow_folder: Path) -> Any:
    # Imported in the thread that uses it: MLflow takes seconds to load and the flow need not wait.
    return importlib.import_module("tasks.runtime.tracking.mlflow_sender").MlflowSender(journal, progress, mlflow_folder)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _now_ms() -> int:
    return int(time.time() * 1000)
